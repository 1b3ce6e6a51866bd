"""Embedding and output head on a grid of their own, the head's use of them calibrated.

A tied matrix works twice. As the head, its rows meet the final hidden states y, and what rounding costs the logits is

    tr(E H E^T)        H = E[y y^T] of the original,  E the difference to the weight

as for any linear layer. As the embedding each row is looked up as it stands, and all its directions count alike: a
multiple of the identity on top of H. Rows are many, and none depends on another: they are rounded some at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from compress.arch import adapter_for
from compress.grids import Grid, Scales, level_of, nearest_level, value_of
from compress.layerwise import batches
from compress.moments import sum_of_products
from compress.quant.scales import check_range
from compress.quant.solve import Calibration, Solved, energy, solve
from compress.train.module import last_hidden

TOKENS = 16384
"""Of the calibration text, that the head's inputs are measured on."""
LOOKED_UP = 0.3
"""Weight of plain closeness beside that of the logits, relative to the mean diagonal of H."""
CHUNK = 1 << 23
"""Weights rounded at a time."""


@torch.no_grad()
def put_outer_on_grids(
    student: Any,
    grids: Mapping[str, Grid],
    windows: Tensor,
    settings: Calibration,
    found: Callable[[str, Solved], None],
    advance: Callable[[float], None],
) -> None:
    """Put embedding and head of `student` on their grids, in place.

    Args:
        student: dense still.
        grids: path of embedding or head -> its grid; a tied matrix has one path.
        windows: calibration tokens [n, length].
        settings: the algorithm, and how it spreads errors.
        found: told each as it is solved.
        advance: called with 1 for each.
    """
    modules = adapter_for(student.config).modules
    head = modules.embedding if student.config.tie_word_embeddings else modules.head
    # before any of them changes
    read = output_gram(student, windows) if head in grids else None
    for path, grid in grids.items():
        weight = student.get_submodule(path).weight
        looked_up = torch.eye(weight.shape[1], device=weight.device)
        if path != head or read is None:
            gram = looked_up
        else:
            gram = read + LOOKED_UP * looked_up if head == modules.embedding else read
        check_range(path, weight, grid)
        solved = solve_rows(weight, gram, grid, settings)
        found(path, solved)
        for part in parts_of(weight):
            weight[part].copy_(value_of(exact_levels(solved.levels[part], grid), rows_of(solved.scales, part)))
        advance(1)


def output_gram(model: Any, windows: Tensor) -> Tensor:
    """H [width, width] of what the head of `model` reads, its mean diagonal 1."""
    few = windows[: max(1, TOKENS // windows.shape[1])]
    states = [last_hidden(model, ids.to(model.device).long()) for ids in batches(few)]
    gram = sum_of_products(states, states, 1.0)
    return gram / gram.diagonal().mean().clamp_min(1e-30)


def solve_rows(weight: Tensor, gram: Tensor, grid: Grid, settings: Calibration) -> Solved:
    """`solve` for a matrix of many rows [rows, columns], `CHUNK` weights at a time.

    Its levels are in 16 bits (`exact_levels`), and its goal is the weight: no training goes on from it.
    """
    levels = torch.empty_like(weight, dtype=torch.float16)
    pieces: list[Scales] = []
    for part in parts_of(weight):
        w = weight[part].float()
        piece = solve(w, w, gram, grid, settings)
        levels[part] = piece.levels
        pieces.append(piece.scales)
    offsets = [piece.offset for piece in pieces]
    offset = None if offsets[0] is None else torch.cat([part for part in offsets if part is not None])
    # scales that are rounded with those of other rows (double quantization) are settled together at last
    scales = grid.settle(torch.cat([piece.scale for piece in pieces]), offset)
    size, error, error_rtn, moved, whole = 0.0, 0.0, 0.0, 0.0, 0.0
    for part in parts_of(weight):
        w = weight[part].float()
        size, whole = size + float(energy(w, gram)), whole + float(w.square().sum())
        lost = value_of(exact_levels(levels[part], grid), rows_of(scales, part)) - w
        error, moved = error + float(energy(lost, gram)), moved + float(lost.square().sum())
        plain = grid.start(w)
        error_rtn += float(energy(value_of(level_of(w, plain, grid), plain) - w, gram))
    errors = (error / size, error_rtn / size) if size > 0 else (0.0, 0.0)
    return Solved(levels, scales, weight, *errors, (moved / whole) ** 0.5 if whole else 0.0, weight)


def parts_of(weight: Tensor) -> list[slice]:
    """Rows of a matrix that are rounded together."""
    rows = max(32, CHUNK // weight.shape[1] // 32 * 32)
    return [slice(first, first + rows) for first in range(0, len(weight), rows)]


def exact_levels(levels: Tensor, grid: Grid) -> Tensor:
    """The table's own values of levels that were kept in 16 bits."""
    return nearest_level(levels.float(), torch.unique(grid.levels).to(levels.device))


def rows_of(scales: Scales, part: slice) -> Scales:
    """Scales of some rows, to compute with."""
    return Scales(scales.scale[part], None if scales.offset is None else scales.offset[part])
