"""The Triton kernels of weights that train through their grid: BLOCKS blocks a program. Definition: grid_weight.py.

Blocks follow each other in memory, so a program's tile is one stretch of it. Forward, a weight is read and written
once; backward, a program goes along its blocks TILE weights at a time and keeps their sums in registers.
"""

# ruff: noqa: PLR0913, PLR0917 - a kernel takes pointers one by one and is one function
from __future__ import annotations

import triton
import triton.language as tl

ROUNDER = tl.constexpr(12582912.0)
"""1.5 * 2^23: adding it leaves no bit behind the point."""


@triton.jit
def round_kernel(  # type: ignore[no-untyped-def]
    latent_ptr,
    scale_ptr,
    shift_ptr,
    table_ptr,
    bounds_ptr,
    weight_ptr,
    codes_ptr,
    count,
    width,
    low,
    high,
    SHIFTED: tl.constexpr,
    UNIFORM: tl.constexpr,
    BOUNDS: tl.constexpr,
    TILE: tl.constexpr,
):
    """TILE weights and their codes, wherever their blocks begin."""
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = at < count
    latent = tl.load(latent_ptr + at, mask=inside, other=0.0)
    if UNIFORM:
        level = (tl.minimum(tl.maximum(latent, low), high) + ROUNDER) - ROUNDER
        code = (level - low).to(tl.int32)
    else:
        code = tl.zeros(latent.shape, dtype=tl.int32)
        for k in tl.static_range(BOUNDS):
            code += tl.where(latent > tl.load(bounds_ptr + k), 1, 0)
        level = tl.load(table_ptr + code)
    block = at // width
    weight = level * tl.load(scale_ptr + block, mask=inside, other=0.0)
    if SHIFTED:
        weight += tl.load(shift_ptr + block, mask=inside, other=0.0)
    tl.store(weight_ptr + at, weight.to(weight_ptr.dtype.element_ty), mask=inside)
    tl.store(codes_ptr + at, code.to(tl.uint8), mask=inside)


@triton.jit
def backward_kernel(  # type: ignore[no-untyped-def]
    gradient_ptr,
    latent_ptr,
    codes_ptr,
    scale_ptr,
    table_ptr,
    of_latent_ptr,
    of_scale_ptr,
    of_shift_ptr,
    blocks,
    width,
    low,
    high,
    BLOCKS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Gradients of BLOCKS blocks, of their latents and summed up."""
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    real = block < blocks
    scale = tl.load(scale_ptr + block, mask=real, other=0.0)
    of_scale = tl.zeros((BLOCKS,), dtype=tl.float32)
    of_shift = tl.zeros((BLOCKS,), dtype=tl.float32)
    for first in range(0, width, TILE):
        column = first + tl.arange(0, TILE)
        at = block.to(tl.int64)[:, None] * width + column[None, :]
        inside = real[:, None] & (column < width)[None, :]
        gradient = tl.load(gradient_ptr + at, mask=inside, other=0.0).to(tl.float32)
        latent = tl.load(latent_ptr + at, mask=inside, other=0.0)
        level = tl.load(table_ptr + tl.load(codes_ptr + at, mask=inside, other=0).to(tl.int32))
        passed = tl.where((latent >= low) & (latent <= high), gradient * scale[:, None], 0.0)
        tl.store(of_latent_ptr + at, passed, mask=inside)
        of_scale += tl.sum(gradient * level, axis=1)
        of_shift += tl.sum(gradient, axis=1)
    tl.store(of_scale_ptr + block, of_scale, mask=real)
    tl.store(of_shift_ptr + block, of_shift, mask=real)
