"""Scales of a grid, chosen for the error that counts.

    search   for every block the factor on the plain scale with the least  sum_j h_j (w_j - Q(w_j))^2
    refit    with the levels fixed, the scales of each row that solve  min_s (w - L s)^T H (w - L s)  exactly

h is the second moment of the layer's inputs, H their whole Gram matrix, L the levels of a row, block by block. The
first is the MSE search of AWQ and llama.cpp's imatrix; the second a small least-squares problem for each row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.grids import Grid, Scales, level_of, value_of
from compress.grids.blocks import blocks_of

FACTORS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7, 1.04, 1.08)
"""Tried on the plain scale; below 1 the extreme weights are clipped."""
CHUNK_BYTES = 1 << 27


def search(weight: Tensor, grid: Grid, importance: Tensor | None = None) -> Scales:
    """The best factor on every block's plain scale.

    Args:
        weight: [rows, columns].
        grid: any.
        importance: second moment of the inputs, [columns]; None: all alike.
    """
    plain = grid.start(weight)
    signs = (1.0, -1.0) if _asymmetric_table(grid) and plain.offset is None else (1.0,)
    columns = weight.shape[1]
    ones = torch.ones(columns, device=weight.device)
    h = ones if importance is None else importance.float() / importance.float().mean().clamp_min(1e-30)
    h = h + 1e-3  # an input that is always zero still tells equal errors apart
    best, best_error = plain.scale, torch.full_like(plain.scale, torch.inf)
    for sign in signs:
        for factor in FACTORS:
            tried = grid.settle(plain.scale * (factor * sign), plain.offset)
            error = (value_of(level_of(weight, tried, grid), tried) - weight).square_().mul_(h)
            total = blocks_of(error, grid.block).sum(-1)
            better = total < best_error
            best = torch.where(better, plain.scale * (factor * sign), best)
            best_error = torch.where(better, total, best_error)
    return grid.settle(best, plain.offset)


def _asymmetric_table(grid: Grid) -> bool:
    """Whether one side of the table reaches further, so that a negative scale is another choice (GGUF)."""
    return bool((grid.levels[0] + grid.levels[-1]).abs() > 1e-6) and grid.name.startswith("q")


def refit(weight: Tensor, levels: Tensor, scales: Scales, gram: Tensor, grid: Grid) -> Scales:
    """Least-squares scales for fixed levels.

    Args:
        weight: [rows, columns], what is to be met.
        levels: [rows, columns].
        scales: as they are; their offset stays.
        gram: damped second moment of the inputs [columns, columns].
        grid: settles the result.
    """
    rows, columns = weight.shape
    count = scales.scale.shape[1]
    width = columns // count
    target = weight if scales.offset is None else weight - value_of(torch.zeros_like(levels), scales)
    found = scales.scale.clone()
    step = max(1, CHUNK_BYTES // (4 * columns * count))
    for first in range(0, rows, step):
        level = levels[first : first + step]
        n = len(level)
        by_block = level.view(n, count, width)
        seen = torch.stack([by_block[:, b] @ gram[b * width : (b + 1) * width] for b in range(count)], 1)
        a = torch.einsum("nbcw,ncw->nbc", seen.view(n, count, count, width), by_block)
        y = torch.einsum("nbj,nj->nb", seen, target[first : first + step])
        ridge = 1e-3 * a.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-20)
        a.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
        # the ridge pulls towards the scales as they are
        y = y + ridge[:, None] * found[first : first + n]
        solved, failed = torch.linalg.solve_ex(a, y)
        # a block that changes its sign or size altogether is an artefact of a singular system
        ratio = solved / found[first : first + n]
        sound = (failed == 0)[:, None] & solved.isfinite() & (ratio > 0.5) & (ratio < 1.5)
        found[first : first + n] = torch.where(sound, solved, found[first : first + n])
    return grid.settle(found, scales.offset)
