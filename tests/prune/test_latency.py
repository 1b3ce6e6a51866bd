"""Widths for a latency, against clocks that are known exactly; and one look at a real one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from compress.arch import Widths, adapter_for
from compress.errors import UserError
from compress.prune.latency import Clock, LatencyModel, decode_seconds, fit_model, solve_latency
from compress.prune.stage import Prune
from tests.models import tiny
from tests.prune.test_plan import SHAPE, SMOL

FULL = SHAPE.widths


def clock(widths: Widths) -> float:
    """A fifth does not depend on depth; of the rest MLPs take half, heads a quarter."""
    layer = 0.25 + 0.5 * widths.mlp / FULL.mlp + 0.25 * widths.heads / FULL.heads
    return 0.2 + 0.8 * layer * widths.layers / FULL.layers


def crooked(widths: Widths) -> float:
    """Narrow matrices gain less than they should."""
    return 0.1 + 0.9 * clock(widths) ** 0.7


def test_the_parts_of_a_clock_are_found() -> None:
    model = fit_model(FULL, ["layers", "mlp", "heads"], lambda _: True, clock)
    assert model.fixed == pytest.approx(0.2)
    assert model.parts == pytest.approx({"mlp": 0.4, "heads": 0.2})
    narrow = replace(FULL, layers=20, mlp=1024, heads=2)
    assert model(narrow) == pytest.approx(clock(narrow))
    assert model(FULL) == pytest.approx(1.0)


@pytest.mark.parametrize("asked", [0.9, 0.8, 0.7])
@pytest.mark.parametrize("time", [clock, crooked])
def test_the_model_solved_for_takes_the_time(asked: float, time) -> None:
    prune = Prune(latency=asked, share={"layers": 0.4, "mlp": 0.6})
    model = fit_model(FULL, ["layers", "mlp"], lambda _: True, time)
    found = solve_latency(asked, model, lambda keep, count: prune.solved(SMOL, keep, count), time)
    assert time(found.widths) == found.measured == pytest.approx(asked, abs=0.04)
    assert found.widths.mlp % 64 == 0 and found.widths.layers < FULL.layers


def test_what_no_cut_can_reach_is_refused_in_words() -> None:
    prune = Prune(latency=0.3, share={"mlp": 1.0})
    stuck = LatencyModel(FULL, 0.2, {"mlp": 0.9})
    with pytest.raises(UserError, match=r"latency=0\.3 cannot be reached: the nearest model takes 0\.90"):
        solve_latency(0.3, stuck, lambda keep, count: prune.solved(SMOL, keep, count), lambda _: 0.9)


def test_the_whole_model_is_no_answer() -> None:
    """A cut that turns out faster than modelled moves the goal up to where nothing would be cut."""
    prune = Prune(latency=0.95, share={"mlp": 1.0})
    model = LatencyModel(FULL, 0.2, {"mlp": 0.5})

    def faster(widths: Widths) -> float:
        return 1.0 if widths == FULL else 0.87

    found = solve_latency(0.95, model, lambda keep, count: prune.solved(SMOL, keep, count), faster)
    assert found.widths != FULL and found.measured == 0.87
    with pytest.raises(UserError, match="nothing would be removed"):
        solve_latency(0.95, model, lambda *_: FULL, faster)


def test_parts_measured_apart_are_no_more_than_the_whole() -> None:
    def overlapping(widths: Widths) -> float:
        return 0.69 + 0.31 * widths.layers / FULL.layers if widths.mlp == FULL.mlp else 0.735

    model = fit_model(FULL, ["mlp"], lambda _: True, overlapping)
    assert model(FULL) == pytest.approx(1.0) and model(replace(FULL, mlp=FULL.mlp // 2)) < 1.0


def test_a_config_that_cannot_say_half_is_asked_for_more() -> None:
    model = fit_model(FULL, ["mlp"], lambda w: w.mlp > 1000, clock)
    assert model.parts == pytest.approx({"mlp": 0.4})


def test_half_of_the_layers_are_faster_and_the_model_stays() -> None:
    _, model = tiny("llama", num_hidden_layers=8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    timed = Clock(model, adapter_for(model.config), lambda _: None)
    assert timed(replace(timed.shape.widths, layers=2)) < 0.8
    assert 0 < timed.dense_seconds < 1 and decode_seconds(model) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not timed.possible(replace(timed.shape.widths, hidden=61))
