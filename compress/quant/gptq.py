"""GPTQ: rounding with error feedback, on any grid (arXiv 2210.17323).

Columns are rounded one after the other; what rounding column j has cost is made up for by the columns still free:

    e = (w_j - Q(w_j)) / U_jj        w_k <- w_k - e U_jk   for k > j        U: upper Cholesky factor of H^-1

Columns with the largest inputs come first (activation order). Scales belong to a column's place in the row and are
fixed before (static groups), so the order changes no layout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from compress_kernels import Sweep, sweep_columns
from torch import Tensor

from compress.errors import UserError
from compress.grids import Grid, Scales, per_column, value_of

SINGLE = 5e-3
"""Damping from which the Gram matrix is factored in single precision."""
COLUMNS = 128
"""Columns whose feedback to the rest is added up and applied in one product."""


@dataclass(frozen=True)
class Rounded:
    """What feedback makes of a weight."""

    levels: Tensor
    """[rows, columns]."""
    goal: Tensor
    """[rows, columns], each weight as it stood when it was rounded: between two levels, where training can go on."""


def inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped `gram` [n, n], in fp32.

    A column that inputs never reach gets the mean on the diagonal; damping grows until the matrix can be factored. With
    the usual damping single precision is enough to factor it, as in the authors' code.
    """
    h = gram.to(torch.float32 if damping >= SINGLE else torch.float64, copy=True)
    diagonal = h.diagonal()
    mean = diagonal.mean()
    if not bool(diagonal.isfinite().all()):
        raise UserError(
            "the inputs of a layer are not finite on the calibration text: the model overflows.",
            "Store its weights in bfloat16 or float32, or round to nearest (stages.quant.algorithm=rtn).",
        )
    if not bool(mean > 0):
        return torch.eye(len(h), device=gram.device)
    diagonal[diagonal == 0] = mean
    while True:
        diagonal.add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(h)
        if not bool(failed):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not bool(failed) and bool(upper.isfinite().all()):
                return upper.float()
        damping = max(10 * damping, 1e-6)


def feedback(weight: Tensor, gram: Tensor, grid: Grid, scales: Scales, damping: float = 0.01) -> Rounded:
    """Round `weight` on given scales.

    Args:
        weight: [rows, columns].
        gram: second moment of the inputs [columns, columns].
        grid: where the levels are.
        scales: of every block.
        damping: added to the diagonal of `gram`, relative to its mean.
    """
    columns = weight.shape[1]
    order = gram.diagonal().argsort(descending=True, stable=True)
    upper = inverse_factor(gram[order][:, order], damping)
    w = weight.float()[:, order]
    scale = per_column(scales.scale, columns)[:, order]
    offset = None if scales.offset is None else per_column(scales.offset, columns)[:, order]
    levels = torch.empty_like(w)
    for first in range(0, columns, COLUMNS):
        part = slice(first, min(first + COLUMNS, columns))
        block = upper[part, part]
        swept = sweep_columns(
            Sweep(
                work=w[:, part],
                anchor=None,
                coupling=block,
                pivot=torch.ones_like(block[0]),
                gain=1 / block.diagonal(),
                scale=scale[:, part],
                offset=None if offset is None else offset[:, part],
                table=grid.levels.to(w.device),
            )
        )
        levels[:, part], w[:, part] = swept.levels, swept.aimed
        w[:, part.stop :].addmm_(swept.moved, upper[part, part.stop :], alpha=-1)
    back = order.argsort()
    return Rounded(levels[:, back], w[:, back])


def descend(weight: Tensor, levels: Tensor, gram: Tensor, grid: Grid, scales: Scales) -> Rounded:
    """One pass of coordinate descent: every column takes the levels that are best for all others as they stand.

    The error tr((W - Q) H (W - Q)^T) never rises (QuantEase, arXiv 2309.01885, alg. 1).

    Args:
        weight: [rows, columns], what is to be met.
        levels: [rows, columns], where to start.
        gram: damped second moment of the inputs.
        grid: where the levels are.
        scales: of every block.
    """
    columns = weight.shape[1]
    h = gram.float()
    scale = per_column(scales.scale, columns)
    offset = None if scales.offset is None else per_column(scales.offset, columns)
    new, goal = torch.empty_like(levels), torch.empty_like(levels)
    value = value_of(levels, scales)
    pull = (weight.float() - value) @ h
    for first in range(0, columns, COLUMNS):
        part = slice(first, min(first + COLUMNS, columns))
        block = h[part, part]
        swept = sweep_columns(
            Sweep(
                work=pull[:, part],
                anchor=value[:, part],
                coupling=block,
                pivot=1 / block.diagonal(),
                gain=torch.ones_like(block[0]),
                scale=scale[:, part],
                offset=None if offset is None else offset[:, part],
                table=grid.levels.to(h.device),
            )
        )
        new[:, part], goal[:, part] = swept.levels, swept.aimed
        pull[:, part.stop :].addmm_(swept.moved, h[part, part.stop :], alpha=-1)
    return Rounded(new, goal)
