"""What all grids share: blocks along the rows, the nearest level, and back to values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from compress_kernels import LatentWeight, round_weight
from torch import Tensor

from compress.grids.base import Grid, Scales


def blocks_of(weight: Tensor, block: int) -> Tensor:
    """View [rows, columns] as [rows, blocks, block]. Block 0 is the whole row.

    Raises:
        ValueError: rows are no whole blocks.
    """
    if block and weight.shape[1] % block:
        raise ValueError(f"rows of {weight.shape[1]} weights are no whole number of blocks of {block}")
    return weight.reshape(weight.shape[0], -1, block or weight.shape[1])


def fits(grid: Grid, shape: Sequence[int], linear: bool) -> bool:
    """Whether a weight [rows, columns] can lie on `grid`.

    bitsandbytes' kernels, which take 32 rows at a time, are asked for linear layers only: an embedding or a head has as
    many rows as there are words.
    """
    rows, columns = shape
    return grid.fits((rows if linear else -(-rows // 32) * 32, columns))


def per_column(values: Tensor, columns: int) -> Tensor:
    """Spread [rows, blocks] over the columns they stand for: [rows, columns]."""
    rows, blocks = values.shape
    return values[:, :, None].expand(rows, blocks, columns // blocks).reshape(rows, columns)


def nearest_level(x: Tensor, levels: Tensor) -> Tensor:
    """The level nearest to every element of `x`; of two equally near ones the lower.

    Args:
        x: weights over their scale, any shape.
        levels: ascending table.
    """
    first, last, count = float(levels[0]), float(levels[-1]), len(levels)
    if last - first == count - 1:  # consecutive integers
        return x.round().clamp_(first, last)
    rows = x.float().reshape(x.shape[0], -1) if x.dim() > 1 else x.float().reshape(1, -1)
    found, _ = round_weight(LatentWeight(rows.contiguous(), torch.ones_like(rows[:, :1]), None, levels), torch.float32)
    return found.view(x.shape)


def level_of(weight: Tensor, scales: Scales, grid: Grid) -> Tensor:
    """The nearest level of every weight [rows, columns], given the scales."""
    columns = weight.shape[1]
    x = weight.float()
    if scales.offset is not None:
        x = x - per_column(scales.offset, columns)
    scale = per_column(scales.scale, columns)
    x = torch.where(scale == 0, torch.zeros_like(x), x / scale)
    return nearest_level(x, grid.levels.to(x.device))


def value_of(levels: Tensor, scales: Scales) -> Tensor:
    """fp32 values [rows, columns] of levels."""
    columns = levels.shape[1]
    value = levels.float() * per_column(scales.scale, columns)
    return value if scales.offset is None else value + per_column(scales.offset, columns)
