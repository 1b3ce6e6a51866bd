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
from compress.grids import Grid, Scales, level_of, value_of
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
        weight.copy_(value_of(solved.levels, solved.scales))
        advance(1)


def output_gram(model: Any, windows: Tensor) -> Tensor:
    """H [width, width] of what the head of `model` reads, its mean diagonal 1."""
    few = windows[: max(1, TOKENS // windows.shape[1])]
    states = [last_hidden(model, ids.to(model.device).long()) for ids in batches(few)]
    gram = sum_of_products(states, states, 1.0)
    return gram / gram.diagonal().mean().clamp_min(1e-30)


def solve_rows(weight: Tensor, gram: Tensor, grid: Grid, settings: Calibration) -> Solved:
    """`solve` for a matrix of many rows [rows, columns], `CHUNK` weights at a time."""
    rows = max(32, CHUNK // weight.shape[1] // 32 * 32)
    pieces = [solve(w, w, gram, grid, settings) for w in (piece.float() for piece in torch.split(weight, rows))]
    offsets = [piece.scales.offset for piece in pieces]
    offset = None if offsets[0] is None else torch.cat([part for part in offsets if part is not None])
    # scales that are rounded with those of other rows (double quantization) are settled together at last
    scales = grid.settle(torch.cat([piece.scales.scale for piece in pieces]), offset)
    levels = torch.cat([piece.levels for piece in pieces])
    goal = torch.cat([piece.goal for piece in pieces])
    size, error, error_rtn, moved = 0.0, 0.0, 0.0, 0.0
    plain = grid.start(weight.float())
    for first in range(0, len(weight), rows):
        part = slice(first, first + rows)
        w, own, theirs = weight[part].float(), rows_of(scales, part), rows_of(plain, part)
        size += float(energy(w, gram))
        lost = value_of(levels[part], own) - w
        error, moved = error + float(energy(lost, gram)), moved + float(lost.square().sum())
        error_rtn += float(energy(value_of(level_of(w, theirs, grid), theirs) - w, gram))
    whole, known = float(weight.float().norm()), size > 0
    errors = (error / size, error_rtn / size) if known else (0.0, 0.0)
    return Solved(levels, scales, goal, *errors, moved**0.5 / whole if whole else 0.0, weight)


def rows_of(scales: Scales, part: slice) -> Scales:
    """Scales of some rows, to compute with."""
    return Scales(scales.scale[part], None if scales.offset is None else scales.offset[part])
