"""Error feedback against the paper's algorithm written out plainly, and the properties of descent."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.errors import UserError
from compress.grids import GRIDS, Grid, Scales, grid_named, level_of, per_column, value_of
from compress.quant.gptq import descend, feedback, inverse_factor
from compress.quant.solve import damped
from tests.quant.problems import energy, gram_of, layer

SOME = ["int8", "int4_g32", "int4_g32_asym", "int3_g64", "nf4", "fp4_b32_single", "q4_0", "q5_1", "q8_0"]


def nearest(x: Tensor, scale: Tensor, offset: Tensor, table: Tensor) -> Tensor:
    """Index of the level whose value is nearest, by looking at every one of them."""
    values = table[None] * scale[:, None] + offset[:, None]
    return (values - x[:, None]).abs().argmin(1)


def straightforward(weight: Tensor, gram: Tensor, grid: Grid, scales: Scales, damping: float) -> Tensor:
    """OBQ's elimination (arXiv 2208.11580, alg. 3), fp64: the inverse Hessian of the columns still free is kept whole
    and one column is taken out of it at a time. No Cholesky factor, no blocks."""
    w, h = weight.double().clone(), gram.double().clone()
    columns = w.shape[1]
    h += damping * h.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    inverse = torch.linalg.inv(h)
    scale = per_column(scales.scale, columns).double()
    offset = torch.zeros_like(scale) if scales.offset is None else per_column(scales.offset, columns).double()
    table = grid.levels.double()
    out = torch.empty_like(w)
    for j in gram.diagonal().argsort(descending=True, stable=True).tolist():
        index = nearest(w[:, j], scale[:, j], offset[:, j], table)
        out[:, j] = table[index] * scale[:, j] + offset[:, j]
        error = (w[:, j] - out[:, j]) / inverse[j, j]
        w -= error[:, None] * inverse[j]
        w[:, j] = out[:, j]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j], inverse[:, j] = 0, 0
        inverse[j, j] = 1
    return out


@pytest.mark.parametrize("name", SOME)
def test_feedback_is_the_algorithm_of_the_paper(name: str) -> None:
    """More columns than one block, so that the lazy product between blocks is tested too."""
    grid = grid_named(name)
    weight, inputs = layer(32, 192, seed=1)
    gram = gram_of(inputs)
    scales = grid.start(weight)
    ours = value_of(feedback(weight, gram, grid, scales, 0.01).levels, scales)
    expected = straightforward(weight, gram, grid, scales, 0.01).float()
    # in fp32 a weight near a border may fall on its other side, and its row takes another way from there on
    rows = (ours - expected).abs().amax(1) < 1e-4
    assert float(rows.float().mean()) > 0.8
    assert abs(energy(ours - weight, gram) / energy(expected - weight, gram) - 1) < 0.01
    assert energy(ours - weight, gram) < 0.7 * energy(value_of(level_of(weight, scales, grid), scales) - weight, gram)


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_inputs_that_know_nothing_of_each_other_make_feedback_plain_rounding(name: str) -> None:
    grid = grid_named(name)
    weight, inputs = layer(32, 128)
    scales = grid.start(weight)
    diagonal = gram_of(inputs).diagonal().diag()
    found = feedback(weight, diagonal, grid, scales)
    assert torch.equal(found.levels, level_of(weight, scales, grid))
    assert torch.equal(found.goal, weight)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("start", ["feedback", "rounded", "far"])
def test_descent_never_raises_the_error(name: str, start: str) -> None:
    grid = grid_named(name)
    weight, inputs = layer(32, 192, seed=2)
    gram = damped(gram_of(inputs), 0.01)
    scales = grid.start(weight)
    levels = {
        "feedback": lambda: feedback(weight, gram, grid, scales).levels,
        "rounded": lambda: level_of(weight, scales, grid),
        "far": lambda: grid.levels[torch.randint(0, len(grid.levels), weight.shape)],
    }[start]()
    before = energy(value_of(levels, scales) - weight, gram)
    for _ in range(3):
        levels = descend(weight, levels, gram, grid, scales).levels
        after = energy(value_of(levels, scales) - weight, gram)
        assert after <= before * (1 + 1e-6)
        before = after


def test_descent_ends_where_no_single_level_is_better() -> None:
    grid = grid_named("q4_0")
    weight, inputs = layer(8, 32)
    gram = damped(gram_of(inputs), 0.01)
    scales = grid.start(weight)
    levels = level_of(weight, scales, grid)
    for _ in range(60):
        levels = descend(weight, levels, gram, grid, scales).levels
    settled = energy(value_of(levels, scales) - weight, gram)
    assert torch.equal(descend(weight, levels, gram, grid, scales).levels, levels)
    for row, column in [(0, 0), (3, 10), (7, 31), (5, 16)]:
        for level in grid.levels:
            other = levels.clone()
            other[row, column] = level
            assert energy(value_of(other, scales) - weight, gram) >= settled * (1 - 1e-6)


def test_factor_is_that_of_the_inverse() -> None:
    gram = gram_of(layer()[1])
    upper = inverse_factor(gram, 0.01).double()
    assert torch.equal(upper, upper.triu())
    damp = gram.double() + 0.01 * gram.double().diagonal().mean() * torch.eye(64)
    torch.testing.assert_close(upper.T @ upper @ damp, torch.eye(64, dtype=torch.float64), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("damping", [0.01, 0.0])
@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_fewer_tokens_than_columns_and_dead_inputs(tokens: int, damping: float) -> None:
    """A singular Gram matrix, with columns no input reaches: finite, and no worse than rounding where it counts."""
    grid = grid_named("int4_g32")
    weight, inputs = layer(16, 64, tokens=5)
    inputs[:, ::7] = 0
    gram = gram_of(inputs[:tokens]) if tokens else torch.zeros(64, 64)
    scales = grid.start(weight)
    found = feedback(weight, gram, grid, scales, damping)
    plain = level_of(weight, scales, grid)
    assert bool(found.levels.isfinite().all()) and bool(found.goal.isfinite().all())
    assert torch.equal(found.levels[:, ::7], plain[:, ::7])
    before, after = (energy(value_of(levels, scales) - weight, gram) for levels in (plain, found.levels))
    assert after <= before


@pytest.mark.parametrize("shape", [(1, 64), (40, 1), (1, 1), (3, 129)])
def test_any_shape(shape: tuple[int, int]) -> None:
    grid = grid_named("int8")
    weight, inputs = layer(*shape)
    gram, scales = gram_of(inputs), grid.start(weight)
    found = feedback(weight, gram, grid, scales)
    better = descend(weight, found.levels, damped(gram, 0.01), grid, scales)
    assert found.levels.shape == better.levels.shape == weight.shape
    assert energy(value_of(better.levels, scales) - weight, gram) < 0.01 * energy(weight, gram)


def test_inputs_that_overflow_are_told_not_looped_over() -> None:
    gram = torch.eye(8)
    gram[0, 0] = float("inf")
    with pytest.raises(UserError, match="overflows"):
        inverse_factor(gram, 0.01)
