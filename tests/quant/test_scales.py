"""Scale search and refit: never worse than where they start, and the exact optimum where there is one."""

from __future__ import annotations

import pytest
import torch

from compress.grids import GRIDS, grid_named, level_of, per_column, value_of
from compress.quant.scales import refit, search
from compress.quant.solve import damped
from tests.quant.problems import energy, gram_of, layer


@pytest.mark.parametrize("name", sorted(GRIDS))
@pytest.mark.parametrize("seed", range(3))
def test_search_is_never_worse_than_plain_rounding(name: str, seed: int) -> None:
    grid = grid_named(name)
    weight, inputs = layer(32, 128, seed=seed)
    weight *= torch.logspace(-2, 2, 32)[:, None]  # hard for double quantization: scales far apart
    importance = gram_of(inputs).diagonal()
    h = importance / importance.mean() + 1e-3
    error = {
        kind: float(((value_of(level_of(weight, scales, grid), scales) - weight).square() * h).sum())
        for kind, scales in (("plain", grid.start(weight)), ("search", search(weight, grid, importance)))
    }
    assert error["search"] <= error["plain"] * (1 + 1e-6)


def test_search_looks_at_what_counts() -> None:
    """One weight per block matters: its error falls, at the others' cost."""
    grid = grid_named("int4_g64")
    weight, _ = layer(64, 64)
    importance = torch.full((64,), 1e-3)
    importance[11] = 1.0
    errors = [
        (value_of(level_of(weight, s, grid), s) - weight)[:, 11].square().mean()
        for s in (search(weight, grid, importance), search(weight, grid))
    ]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("name", ["int8", "int4_g32", "q4_0", "nf4_b32_single", "fp4_b64_single"])
def test_refit_is_the_least_squares_solution(name: str) -> None:
    """Against lstsq on samples: the scales of one row, whose levels times scales should give the row's outputs."""
    grid = grid_named(name)
    weight, inputs = layer(16, 64, tokens=600)
    gram = gram_of(inputs)
    scales = grid.start(weight)
    levels = level_of(weight, scales, grid)
    found = refit(weight, levels, scales, gram, grid)
    width = 64 // scales.scale.shape[1]
    for row in range(16):
        design = (inputs * levels[row]).view(len(inputs), -1, width).sum(-1)
        expected = torch.linalg.lstsq(design.double(), (inputs @ weight[row])[:, None].double()).solution[:, 0]
        torch.testing.assert_close(found.scale[row].double(), expected, rtol=8e-3, atol=1e-5)


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_refit_never_raises_the_error(name: str) -> None:
    """But by the rounding of the scales, which is large only where double quantization ties them together."""
    grid = grid_named(name)
    weight, inputs = layer(32, 128)
    inputs[:, 77] *= 30  # one loud input must not hold the scales of the other blocks
    gram = damped(gram_of(inputs), 0.01)
    scales = grid.start(weight)
    levels = level_of(weight, scales, grid)
    found = refit(weight, levels, scales, gram, grid)
    before, after = (energy(value_of(levels, s) - weight, gram) for s in (scales, found))
    doubled = name.startswith(("nf4", "fp4")) and not name.endswith("single")
    assert after <= before * (1.1 if doubled else 1.003)
    packed = grid.unpack(grid.pack(levels, found, torch.float32))
    torch.testing.assert_close(value_of(*packed), value_of(levels, found), rtol=1e-6, atol=1e-7)
    if name.endswith("asym"):
        assert torch.equal(found.stored["zero"], scales.stored["zero"])


def test_refit_wins_what_an_offset_leaves() -> None:
    """An integer zero point moves with its scale: the solution is that of levels minus zero."""
    grid = grid_named("int3_g64_asym")
    weight, inputs = layer(16, 64, tokens=600)
    gram = gram_of(inputs)
    scales = grid.start(weight + 0.3)
    levels = level_of(weight, scales, grid)
    found = refit(weight, levels, scales, gram, grid)
    steps = levels - per_column(scales.stored["zero"].float(), 64)
    expected = ((steps @ gram) * weight).sum(1) / ((steps @ gram) * steps).sum(1)
    moved = (expected / scales.scale[:, 0] - 1).abs() < 0.5
    torch.testing.assert_close(found.scale[moved, 0], expected[moved], rtol=8e-3, atol=1e-5)
    assert int(moved.sum()) > 8


def test_zero_rows_and_dead_inputs_stay_finite() -> None:
    for name in ("q4_0", "int4_g32_asym", "nf4", "int8"):
        grid = grid_named(name)
        weight, _ = layer(32, 64)
        weight[:3] = 0
        gram = torch.zeros(64, 64)
        scales = search(weight, grid, gram.diagonal())
        levels = level_of(weight, scales, grid)
        found = refit(weight, levels, scales, damped(gram, 0.01), grid)
        value = value_of(levels, found)
        assert bool(value.isfinite().all()), name
        assert torch.equal(value[:3], torch.zeros(3, 64)), name
