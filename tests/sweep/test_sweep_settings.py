"""What a run returns to its sweeper."""

from __future__ import annotations

import math

import pytest

from compress.command import compose
from compress.config import build, share_of_threads
from compress.errors import UserError
from compress.sweep.settings import OBJECTIVES, Sweep, directions, returned
from tests.report.sample import full


def test_every_objective_is_in_a_report() -> None:
    found = returned(full(), list(OBJECTIVES))
    assert isinstance(found, tuple) and len(found) == len(OBJECTIVES)
    final = full()["final"]
    assert returned(full(), ["kl_to_teacher", "bytes", "decode"]) == (
        final["kl_to_teacher"],
        final["bytes"],
        final["speed"]["decode_tokens_per_second"],
    )


def test_one_objective_is_a_plain_number() -> None:
    assert returned(full(), ["bytes"]) == full()["final"]["bytes"]


def test_not_a_number_is_a_failure() -> None:
    report = full()
    report["final"]["kl_to_teacher"] = math.nan
    assert returned(report, ["bytes", "kl_to_teacher"]) is None


def test_directions() -> None:
    assert directions(["kl_to_teacher", "bytes", "decode"]) == ["minimize", "minimize", "maximize"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sweep.objectives=[speed]"], "decode"),
        (["sweep.objectives=[]"], "kl_to_teacher"),
        (["sweep.workers=0"], "at least 1"),
        (["sweep.objectives=[decode]", "evaluate.speed=false"], "evaluate.speed=false"),
    ],
)
def test_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        build(compose(["+pipeline=nf4", *overrides]))
    assert said in str(caught.value)


def test_a_stage_can_be_left_out() -> None:
    stages = build(compose(["+pipeline=prune_distill", "stages.recover=null"])).stages
    assert list(stages) == ["prune", "compensate", "distill", "quant"]
    for nothing_left in (["+pipeline=nf4", "stages.quant=null"], ["name=mine"]):
        with pytest.raises(UserError, match="no stages"):
            build(compose(nothing_left))
    assert not build(compose(["+pipeline=export", "name=mine"])).stages


def test_threads_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.preparation.available_threads", lambda: 12)
    assert [share_of_threads(n) for n in (1, 2, 5, 12, 40)] == [12, 6, 2, 1, 1]


def test_defaults_are_allowed() -> None:
    assert Sweep().objectives == ["kl_to_teacher"]
