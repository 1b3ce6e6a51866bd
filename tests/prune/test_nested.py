"""Pruning in steps and the search over shapes: their plans, and whole runs on a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.arch import adapter_for
from compress.checkpoint import Checkpoint
from compress.distill.stage import Distill
from compress.errors import UserError
from compress.keys import stage_fields, stage_inputs
from compress.prune.nested import run_inside
from compress.prune.search import PruneSearch
from compress.prune.stage import Compensate, Prune
from compress.prune.steps import PruneInSteps, between
from compress.stage import DENSE, Context
from tests.models import save, tiny
from tests.pipelines.helpers import tiny_run
from tests.prune.test_plan import SHAPE, SMOL

SKIPPED = ("evaluate.prompts=[]", "evaluate.speed=false")


def test_steps_go_straight_to_the_goal() -> None:
    full = SHAPE.widths
    goal = replace(full, layers=24, mlp=1024)
    path = between(SMOL, goal, 3)
    assert [w.layers for w in path] == [28, 26, 24] and [w.mlp for w in path] == [1344, 1216, 1024]
    assert between(SMOL, goal, 1) == [goal]
    assert between(SMOL, replace(full, layers=29), 4) == [replace(full, layers=29)]
    config, _ = tiny("gpt2")  # width and heads go together
    shape = adapter_for(config).shape(config)
    half = replace(shape.widths, heads=2, hidden=32)
    assert between(config, half, 2) == [replace(shape.widths, heads=3, hidden=48), half]
    quarter = replace(shape.widths, heads=3, hidden=48)
    assert between(config, quarter, 2) == [quarter]  # no whole head to cut in between


def test_nested_stages_count_in_the_key() -> None:
    def key(**fields: Any) -> Any:
        return stage_fields(PruneInSteps(**{"prune": Prune(), "compensate": Compensate(), "heal": Distill(), **fields}))

    class Later(Prune):
        version = 99

    assert key() == key() and json.dumps(key())
    assert key() != key(prune=Prune(keep=0.8)) != key(prune=Later(keep=0.8))
    assert key() != key(compensate=None)


def test_parts_are_done_once(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from compress.stage import Context

    calls = []

    def work(checkpoint: Checkpoint, context: Context) -> Any:
        calls.append(context.seed)
        if len(calls) == 1:
            (context.folder / "half").write_text("")
            raise KeyboardInterrupt
        (context.folder / "config.json").write_text("{}")
        return replace(checkpoint, folder=context.folder), {"loss": 1.5}

    source = Checkpoint(tmp_path, frozenset({DENSE}), "m")
    nothing: Any = SimpleNamespace()
    context = Context(tmp_path, tmp_path / "scratch", source, None, nothing, nothing, nothing, nothing)
    with pytest.raises(KeyboardInterrupt):
        run_inside("part", work, source, context, 3)
    for _ in range(2):
        found, metrics = run_inside("part", work, source, context, 3)
        assert metrics == {"loss": 1.5} and found.traits == {DENSE}
        assert not (found.folder / "half").exists() and (found.folder / "config.json").exists()
    assert calls == [3, 3]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save("llama", tmp_path / "model")
    return tmp_path / "model"


def test_steps_end_where_they_should(model: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    more = ["stages.prune.prune.keep=0.5", "stages.prune.steps=2", *SKIPPED]
    report = compress.run(tiny_run("prune_iterative", model, text_file, tmp_path / "out", *more))
    details = report["stages"][0]["details"]
    config = Checkpoint(model, frozenset()).config
    assert len(details["cuts"]) == 2
    assert 0.6 < details["cuts"][0]["kept_fraction"] < 0.9  # whole layers, of four
    assert details["kept_fraction"] == pytest.approx(0.5, abs=0.02)
    assert details["train_tokens"] == pytest.approx(2000, rel=0.2)
    kept = details["plan"]
    # composed: indices of the model the run began with, of the final widths
    assert len(kept["mlp"]) == config.num_hidden_layers and len(kept["layers"]) == details["widths"]["layers"]
    assert {len(row) for row in kept["mlp"]} == {details["widths"]["mlp"]}
    assert report["artifacts"][0]["verified"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "prune: step by step" in text and "prune: step by step" in (tmp_path / "out" / "report.html").read_text()


def test_the_best_candidate_stays(model: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    more = ["+stages.prune.candidates.too_much={heads:1.0}", "stages.prune.prune.keep=0.7", *SKIPPED]
    report = compress.run(tiny_run("prune_search", model, text_file, tmp_path / "out", *more))
    details = report["stages"][0]["details"]
    rows = {row["name"]: row for row in details["candidates"]}
    assert len(rows) >= 3 and "too_much" in details["refused"]
    assert details["chosen"] == min(rows, key=lambda name: rows[name]["kl_healed"])
    assert details["widths"] == rows[details["chosen"]]["widths"]
    for row in rows.values():
        assert row["kept_fraction"] == pytest.approx(0.7, abs=0.02) and row["kl_before"] > 0
    assert report["stages"][1]["kind"] == "distill"
    for file in ("report.md", "report.html"):
        text = (tmp_path / "out" / file).read_text()
        assert "shapes tried" in text and f"{details['chosen']} (chosen)" in text and "Not tried: " in text


def test_a_killed_search_tries_nothing_twice(
    model: Path, text_file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.prune import contest

    plain, calls = contest.divergence_from, list[int]()

    def counted(*arguments: Any) -> float:
        calls.append(1)
        if len(calls) == kill_at:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(contest, "divergence_from", counted)
    run = tiny_run("prune_search", model, text_file, tmp_path / "out", "stages.prune.prune.keep=0.7", *SKIPPED)
    kill_at = 4  # the second candidate is cut and healed, and not wholly judged
    with pytest.raises(KeyboardInterrupt):
        compress.run(run)
    kill_at, done = 0, len(calls)
    details = compress.run(run)["stages"][0]["details"]
    assert len(calls) - done == 2 * (len(details["candidates"]) - 1)
    assert details["widths"] == min(details["candidates"], key=lambda row: row["kl_healed"])["widths"]


def test_nonsense_is_refused() -> None:
    with pytest.raises(UserError, match="steps=0"):
        PruneInSteps(Prune(), None, Distill(), steps=0)
    with pytest.raises(UserError, match="needs both"):
        PruneInSteps(prune=Prune())
    with pytest.raises(UserError, match="latency"):
        PruneInSteps(Prune(latency=0.8), None, Distill())
    with pytest.raises(UserError, match="brief=0"):
        PruneSearch(Prune(), None, Distill(), brief=0)
    with pytest.raises(UserError, match="depth"):
        PruneSearch(Prune(), None, Distill(), candidates={"odd": {"depth": 1.0}})
    with pytest.raises(UserError, match="no candidate meets the budget"):
        PruneSearch(Prune(keep=0.5), None, Distill(), candidates={"heads": {"heads": 1.0}}).check(SMOL)


def test_a_teacher_of_another_shape_cannot_compensate(
    model: Path, text_file: Path, tmp_path: Path, cache: Path
) -> None:
    save("llama", tmp_path / "teacher", num_hidden_layers=5)
    more = ["+model@teacher=hf", f"teacher.path={tmp_path / 'teacher'}"]
    for pipeline in ("prune_heal", "prune_iterative", "prune_search"):
        with pytest.raises(UserError, match="their shapes differ"):
            compress.run(tiny_run(pipeline, model, text_file, tmp_path / "out", *more))


@pytest.mark.parametrize(("count", "apart"), [(1, 0), (2, 1), (3, 1), (12, 3)])
def test_nothing_is_fitted_on_what_judges(count: int, apart: int) -> None:
    documents = tuple(f"document {number}" for number in range(count))
    fitted, judging = PruneSearch.divide(documents)
    assert judging == (documents[-apart:] if apart else documents)
    assert fitted + judging == documents or not apart


def test_residual_channels_go_in_steps_that_the_family_can_state() -> None:
    """A Llama's residual width is a multiple of its query heads, in between too."""
    goal = replace(SHAPE.widths, hidden=504)
    path = between(SMOL, goal, 3)
    assert path[-1] == goal and len(path) == 3
    assert all(widths.hidden % widths.all_query_heads == 0 for widths in path)


def test_a_candidate_that_cannot_reach_its_goal_does_not_end_the_search(
    model: Path, text_file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A latency is measured when a candidate is cut: what parameters promised may not come true."""
    run = Prune.run

    def slow(stage: Any, checkpoint: Checkpoint, context: Context) -> Any:
        if stage.share.get("mlp") == 1.0:
            raise UserError("latency=0.5 cannot be reached: the nearest model takes 0.90", "")
        return run(stage, checkpoint, context)

    monkeypatch.setattr(Prune, "run", slow)
    more = ["stages.prune.prune.keep=0.7", *SKIPPED]
    report = compress.run(tiny_run("prune_search", model, text_file, tmp_path / "out", *more))
    details = report["stages"][0]["details"]
    assert "cannot be reached" in details["refused"]["width"] and details["candidates"]
    monkeypatch.setattr(Prune, "run", lambda *_: (_ for _ in ()).throw(UserError("none can", "")))
    with pytest.raises(UserError, match=r"no candidate meets the budget \(.*none can"):
        compress.run(tiny_run("prune_search", model, text_file, tmp_path / "again", "seed=2", *more))


def test_the_text_that_judges_is_looked_at_before_the_work(model: Path, tmp_path: Path, cache: Path) -> None:
    from compress import preparation
    from compress.data import Corpus

    documents = tuple("a long text of many words " * 400 for _ in range(4))
    stages = {"prune": PruneSearch(Prune(), Compensate(), Distill())}
    checkpoint = Checkpoint(model, frozenset({DENSE}), "m")
    corpus = Corpus("text", documents, documents, documents, "")
    preparation.check_text(stages, corpus, checkpoint)
    short = replace(corpus, calibration=(*documents[:3], "too short"))
    with pytest.raises(UserError, match="too short"):
        preparation.check_text(stages, short, checkpoint)


def test_what_was_timed_on_one_processor_is_not_found_on_another() -> None:
    def asked(stage: Any) -> bool:
        return "processor" in stage_inputs(stage, {}, dict.fromkeys(stage.reads, ""), {})

    assert asked(Prune(latency=0.8)) and not asked(Prune())
    assert asked(PruneSearch(Prune(latency=0.8), None, Distill())) and not asked(PruneSearch(Prune(), None, Distill()))
