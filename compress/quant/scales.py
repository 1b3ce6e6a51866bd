"""Scales of a grid, chosen for the error that counts.

    search   for every block the factor on the plain scale with the least  sum_j h_j (w_j - Q(w_j))^2
    refit    with the levels fixed, the scales of each row that solve  min_s (w - L s)^T H (w - L s)  exactly

h is the second moment of the layer's inputs, H their whole Gram matrix, L the levels of a row, block by block. The
first is the MSE search of AWQ and llama.cpp's imatrix; the second a small least-squares problem for each row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.errors import UserError
from compress.grids import GGUF, Grid, Scales, level_of, per_column, value_of
from compress.grids.blocks import blocks_of

FACTORS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7, 1.04, 1.08)
"""Tried on the plain scale; below 1 the extreme weights are clipped."""
CHUNK_BYTES = 1 << 27
PULL = 1e-4
"""Of refitted scales towards what they were, relative to each block's own weight in the error."""


def check_range(path: str, weight: Tensor, grid: Grid) -> None:
    """Refuse weights [rows, columns] larger than the grid's scales can hold, by name.

    Raises:
        UserError: a scale is not finite.
    """
    scales = grid.start(weight.float())
    parts = [scales.scale] if scales.offset is None else [scales.scale, scales.offset]
    if not all(bool(part.isfinite().all()) for part in parts):
        largest = float(weight.abs().max())
        raise UserError(
            f"{path} has a weight of {largest:.3g}: larger than the scales of {grid.name} can hold.",
            "Quantize on a grid with fp32 scales: nf4, int4_g64 or int8."
            if isinstance(grid, GGUF)
            else "No grid holds it: look at what wrote the file.",
        )


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
    found = grid.settle(best, plain.offset)
    # double quantization settles all blocks together: what each block liked best alone can be worse for the whole
    errors = [
        float((value_of(level_of(weight, scales, grid), scales) - weight).square_().mul_(h).sum())
        for scales in (found, plain)
    ]
    return found if errors[0] <= errors[1] else plain


def _asymmetric_table(grid: Grid) -> bool:
    """Whether one side of the table reaches further, so that a negative scale is another choice (GGUF)."""
    return bool((grid.levels[0] + grid.levels[-1]).abs() > 1e-6) and grid.name.startswith("q")


def refit(weight: Tensor, levels: Tensor, scales: Scales, gram: Tensor, grid: Grid) -> Scales:
    """Least-squares scales for fixed levels.

    Up to a small pull towards the scales as they are (`PULL`), so that the error never rises but by the rounding of the
    scales themselves. An integer zero point (w = s (q - z)) stays, and its offset goes with the scale.

    Args:
        weight: [rows, columns], what is to be met.
        levels: [rows, columns].
        scales: as they are; an offset of its own stays.
        gram: damped second moment of the inputs [columns, columns].
        grid: settles the result.
    """
    rows, columns = weight.shape
    count = scales.scale.shape[1]
    width = columns // count
    zero = scales.stored.get("zero")
    target = weight
    if zero is not None:
        levels = levels - per_column(zero.float(), columns)
    elif scales.offset is not None:
        target = weight - per_column(scales.offset, columns)
    found = scales.scale.clone()
    step = max(1, CHUNK_BYTES // (4 * columns * count))
    for first in range(0, rows, step):
        level = levels[first : first + step]
        n = len(level)
        by_block = level.view(n, count, width)
        seen = torch.bmm(by_block.transpose(0, 1), gram.reshape(count, width, columns))
        y = torch.einsum("bnj,nj->nb", seen, target[first : first + step])
        a = seen.view(count, n, count, width).mul_(by_block).sum(-1).transpose(0, 1)
        old = found[first : first + n]
        diagonal = a.diagonal(dim1=1, dim2=2)
        # each block by its own size: loud inputs of one block must not hold the others still
        ridge = PULL * diagonal + 1e-7 * diagonal.mean(1, keepdim=True) + 1e-20
        solved, failed = torch.linalg.solve_ex(a + ridge.diag_embed(), y + ridge * old)
        # a block that changes its sign or size altogether is an artefact of a singular system
        ratio = solved / old
        sound = (failed == 0)[:, None] & solved.isfinite() & (ratio > 0.5) & (ratio < 1.5)
        new = torch.where(sound, solved, old)
        # where some blocks had to stay, the others' scales are not the best for them
        change = new - old
        gained = (change * (2 * y - (a @ (new + old)[..., None]).squeeze(-1))).sum(1) > 0
        found[first : first + n] = torch.where(gained[:, None], new, old)
    return grid.settle(found, scales.offset if zero is None else -found * zero)
