"""GPTQ: rounding with error feedback, on any grid (arXiv 2210.17323).

Columns are rounded one after the other; what rounding column j has cost is made up for by the columns still free:

    e = (w_j - Q(w_j)) / U_jj        w_k <- w_k - e U_jk   for k > j        U: upper Cholesky factor of H^-1

Columns with the largest inputs come first (activation order). Scales belong to a column's place in the row and are
fixed before (static groups), so the order changes no layout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from compress_kernels import Sweep, Swept, sweep_columns
from torch import Tensor

from compress.errors import UserError
from compress.grids import Grid, Scales, per_column, value_of

SINGLE = 5e-3
"""Damping from which the Gram matrix is factored in single precision."""
COLUMNS = 128
"""Columns whose feedback to the rest is added up and applied in one product; for a few rows that is no product yet."""


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


@dataclass(frozen=True)
class Block:
    """Some columns that are swept together, and what they mean for those after them."""

    part: slice
    coupling: Tensor
    """Among themselves."""
    rest: Tensor
    """To the columns after them."""
    pivot: Tensor
    gain: Tensor


@dataclass(frozen=True)
class Order:
    """Columns in the order they are rounded in, factored once for any number of rows."""

    columns: Tensor
    """[columns], the loudest inputs first."""
    blocks: list[Block]

    @classmethod
    def of(cls, gram: Tensor, damping: float, at_once: int = COLUMNS) -> Order:
        """Of inputs with this second moment [columns, columns]; `damping` is relative to its mean diagonal, and
        `at_once` columns are swept together."""
        order = gram.diagonal().argsort(descending=True, stable=True)
        upper = inverse_factor(gram[order][:, order], damping)
        return cls(order, _blocks(upper, torch.ones_like(upper[0]), 1 / upper.diagonal(), at_once))


@dataclass(frozen=True)
class Curvature:
    """Second moment of the inputs, made ready once for the descent of any number of rows."""

    h: Tensor
    blocks: list[Block]

    @classmethod
    def of(cls, gram: Tensor, at_once: int = COLUMNS) -> Curvature:
        """Of the damped second moment [columns, columns]; `at_once` columns are swept together."""
        h = gram.float()
        return cls(h, _blocks(h, 1 / h.diagonal(), torch.ones_like(h[0]), at_once))


def _blocks(coupling: Tensor, pivot: Tensor, gain: Tensor, at_once: int) -> list[Block]:
    found = []
    for first in range(0, len(coupling), at_once):
        part = slice(first, min(first + at_once, len(coupling)))
        within, rest = coupling[part, part].contiguous(), coupling[part, part.stop :]
        found.append(Block(part, within, rest, pivot[part].contiguous(), gain[part].contiguous()))
    return found


def feedback(weight: Tensor, gram: Tensor, grid: Grid, scales: Scales, damping: float = 0.01) -> Rounded:
    """Round `weight` on given scales.

    Args:
        weight: [rows, columns].
        gram: second moment of the inputs [columns, columns].
        grid: where the levels are.
        scales: of every block.
        damping: added to the diagonal of `gram`, relative to its mean.
    """
    return in_order(weight, Order.of(gram, damping), grid, scales)


def in_order(weight: Tensor, order: Order, grid: Grid, scales: Scales) -> Rounded:
    """`feedback` where the second moment has been factored: for some rows at a time."""
    columns = weight.shape[1]
    w = weight.float()[:, order.columns]
    scale = per_column(scales.scale, columns)[:, order.columns]
    offset = None if scales.offset is None else per_column(scales.offset, columns)[:, order.columns]
    levels = torch.empty_like(w)
    for block in order.blocks:
        part = block.part
        swept = _sweep(block, w[:, part], None, scale[:, part], None if offset is None else offset[:, part], grid)
        levels[:, part], w[:, part] = swept.levels, swept.aimed
        w[:, part.stop :].addmm_(swept.moved, block.rest, alpha=-1)
    back = order.columns.argsort()
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
    return down(weight, levels, Curvature.of(gram), grid, scales)


def down(weight: Tensor, levels: Tensor, curvature: Curvature, grid: Grid, scales: Scales) -> Rounded:
    """`descend` where the second moment has been made ready: for some rows at a time."""
    columns = weight.shape[1]
    scale = per_column(scales.scale, columns)
    offset = None if scales.offset is None else per_column(scales.offset, columns)
    new, goal = torch.empty_like(levels), torch.empty_like(levels)
    value = value_of(levels, scales)
    pull = (weight.float() - value) @ curvature.h
    for block in curvature.blocks:
        part = block.part
        around = None if offset is None else offset[:, part]
        swept = _sweep(block, pull[:, part], value[:, part], scale[:, part], around, grid)
        new[:, part], goal[:, part] = swept.levels, swept.aimed
        pull[:, part.stop :].addmm_(swept.moved, block.rest, alpha=-1)
    return Rounded(new, goal)


def _sweep(
    block: Block, work: Tensor, anchor: Tensor | None, scale: Tensor, offset: Tensor | None, grid: Grid
) -> Swept:
    return sweep_columns(
        Sweep(
            work=work,
            anchor=anchor,
            coupling=block.coupling,
            pivot=block.pivot,
            gain=block.gain,
            scale=scale,
            offset=offset,
            table=grid.levels.to(work.device),
        )
    )
