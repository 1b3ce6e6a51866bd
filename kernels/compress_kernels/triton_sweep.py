"""The Triton kernel of the sweep over columns: a program per ROWS rows, which stay in registers. Definition: sweep.py.

The bits are the reference's: no multiply-add is fused, divisions are IEEE-rounded, and a whole level is found by adding
and taking away 1.5 * 2^23, which rounds halves to even as `round` does. Column j of the tile in registers is read by a
sum over zeros. Per column a program reads b couplings (shared by all programs, so from the cache) and 4 values a row.
"""

# ruff: noqa: PLR0913, PLR0917 - a kernel takes pointers one by one and is one function
from __future__ import annotations

import triton
import triton.language as tl

ROUNDER = tl.constexpr(12582912.0)
"""1.5 * 2^23: adding it leaves no bit behind the point."""


@triton.jit
def sweep_kernel(  # type: ignore[no-untyped-def]
    work_ptr,
    anchor_ptr,
    coupling_ptr,
    pivot_ptr,
    gain_ptr,
    scale_ptr,
    offset_ptr,
    table_ptr,
    bounds_ptr,
    levels_ptr,
    aimed_ptr,
    moved_ptr,
    rows,
    columns,
    low,
    high,
    ANCHORED: tl.constexpr,
    SHIFTED: tl.constexpr,
    UNIFORM: tl.constexpr,
    BOUNDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Levels, aims and moves of ROWS rows; COLUMNS is `columns` rounded up to a power of two."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    first = row.to(tl.int64) * columns
    at = tl.arange(0, COLUMNS)
    free = at < columns
    work = tl.load(work_ptr + first[:, None] + at[None, :], mask=inside[:, None] & free[None, :], other=0.0)
    for j in range(columns):
        x = tl.sum(tl.where(at[None, :] == j, work, 0.0), axis=1) * tl.load(pivot_ptr + j)
        scale = tl.load(scale_ptr + first + j, mask=inside, other=1.0)
        inverse = tl.where(scale == 0.0, 0.0, tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale))
        if ANCHORED:
            anchor = tl.load(anchor_ptr + first + j, mask=inside, other=0.0)
            x += anchor
        scaled = x
        if SHIFTED:
            offset = tl.load(offset_ptr + first + j, mask=inside, other=0.0)
            scaled = x - offset
        scaled = scaled * inverse
        if UNIFORM:
            level = (tl.minimum(tl.maximum(scaled, low), high) + ROUNDER) - ROUNDER
        else:
            position = tl.zeros(scaled.shape, dtype=tl.int32)
            for k in tl.static_range(BOUNDS):
                position += tl.where(scaled > tl.load(bounds_ptr + k), 1, 0)
            level = tl.load(table_ptr + position)
        value = level * scale
        if SHIFTED:
            value += offset
        moved = (value - anchor if ANCHORED else x - value) * tl.load(gain_ptr + j)
        tl.store(levels_ptr + first + j, level, mask=inside)
        tl.store(aimed_ptr + first + j, x, mask=inside)
        tl.store(moved_ptr + first + j, moved, mask=inside)
        coupling = tl.load(coupling_ptr + j * columns + at, mask=free & (at > j), other=0.0)
        work -= moved[:, None] * coupling[None, :]
