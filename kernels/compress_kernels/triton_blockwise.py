"""Triton kernels of blockwise 4-bit quantization. Results are specified by reference.py, bit for bit.

Two things keep the bits: divisions are IEEE-rounded (`tl.div_rn`; plain `/` is approximate in fp32), and launches
turn off fusing a multiply with an add (`enable_fp_fusion=False`). A program handles ROWS blocks; even and odd weights
are loaded as two tiles, so that packing a pair of codes stays within a thread.
"""

# ruff: noqa: PLR0913, PLR0917 - a kernel takes pointers one by one and is one function
from __future__ import annotations

import triton
import triton.language as tl

ABSMAX_FLOOR = tl.constexpr(1e-38)


@triton.jit
def _codes(x, divisor, reciprocal, complete, bounds_ptr, order_ptr):  # type: ignore[no-untyped-def]
    scaled = tl.where(complete, x * reciprocal, tl.div_rn(x, divisor))
    position = tl.zeros(x.shape, dtype=tl.int32)
    for k in tl.static_range(15):
        # "not at most" instead of "above": NaN belongs to the last bin
        position += tl.where(scaled <= tl.load(bounds_ptr + k), 0, 1)
    return tl.load(order_ptr + position).to(tl.int32)


@triton.jit
def quantize_kernel(  # type: ignore[no-untyped-def]
    weights_ptr,
    given_ptr,
    absmax_ptr,
    codes_ptr,
    bounds_ptr,
    order_ptr,
    count,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    GIVEN: tl.constexpr,
):
    """Codes, and block scales unless GIVEN, of ROWS blocks."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    pair = tl.arange(0, BLOCK // 2)[None, :]
    even_at = row * BLOCK + 2 * pair
    even = tl.load(weights_ptr + even_at, mask=even_at < count, other=0.0).to(tl.float32)
    odd = tl.load(weights_ptr + even_at + 1, mask=even_at + 1 < count, other=0.0).to(tl.float32)
    complete = (row + 1) * BLOCK <= count
    exists = row * BLOCK < count
    if GIVEN:
        absmax = tl.load(given_ptr + row, mask=exists, other=1.0)
    else:
        # as integers: NaNs lie above infinity, so a NaN wins, as in torch's max
        even_bits = even.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        odd_bits = odd.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        largest = tl.max(tl.maximum(even_bits, odd_bits), axis=1, keep_dims=True)
        absmax = largest.to(tl.float32, bitcast=True)
        absmax = tl.where((absmax < ABSMAX_FLOOR) & (complete == 0), ABSMAX_FLOOR, absmax)
        tl.store(absmax_ptr + row, absmax, mask=exists)
    magnitude = tl.abs(absmax)
    magnitude = tl.where(magnitude < ABSMAX_FLOOR, ABSMAX_FLOOR, magnitude)
    negative = absmax.to(tl.int32, bitcast=True) < 0
    divisor = tl.where(negative, -magnitude, magnitude)
    reciprocal = tl.div_rn(tl.full(divisor.shape, 1.0, tl.float32), divisor)
    first = _codes(even, divisor, reciprocal, complete, bounds_ptr, order_ptr)
    second = _codes(odd, divisor, reciprocal, complete, bounds_ptr, order_ptr)
    packed = ((first << 4) | second).to(tl.uint8)
    tl.store(codes_ptr + row * (BLOCK // 2) + pair, packed, mask=even_at < count)


@triton.jit
def dequantize_kernel(  # type: ignore[no-untyped-def]
    codes_ptr,
    absmax_ptr,
    values_ptr,
    out_ptr,
    count,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """TILE weights: one table look-up and one product each."""
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = at < count
    byte = tl.load(codes_ptr + at // 2, mask=inside, other=0).to(tl.int32)
    code = tl.where(at % 2 == 0, byte >> 4, byte & 15)
    scale = tl.load(absmax_ptr + at // BLOCK, mask=inside, other=0.0)
    value = tl.load(values_ptr + code) * scale
    tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def quantize_absmax_kernel(  # type: ignore[no-untyped-def]
    residual_ptr,
    lookup_ptr,
    codes_ptr,
    nested_ptr,
    count,
    BLOCK: tl.constexpr,
):
    """One block of scale residuals to 8-bit dynamic codes."""
    block = tl.program_id(0).to(tl.int64)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    x = tl.load(residual_ptr + at, mask=inside, other=0.0)
    magnitude = tl.abs(x)
    largest = tl.max(tl.where(magnitude <= float("inf"), magnitude, 0.0), axis=0)  # NaN does not count
    tl.store(nested_ptr + block, largest)
    scaled = x * tl.div_rn(1.0, largest)
    scaled = tl.where(scaled > 1.0, 1.0, tl.where(scaled < -1.0, -1.0, scaled))
    known = scaled <= 1.0  # in a block of zeros 0 * (1 / 0) is NaN too
    point = tl.where(known, (scaled + 1.0) * 0.5 * 65535.0 + 0.5, 0.0).to(tl.int32)
    code = tl.load(lookup_ptr + point, mask=inside, other=0)
    tl.store(codes_ptr + at, tl.where(known, code, 0).to(tl.uint8), mask=inside)


@triton.jit
def dequantize_absmax_kernel(  # type: ignore[no-untyped-def]
    codes_ptr,
    nested_ptr,
    table_ptr,
    offset_ptr,
    absmax_ptr,
    count,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """TILE effective block scales."""
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = at < count
    code = tl.load(codes_ptr + at, mask=inside, other=0).to(tl.int32)
    scale = tl.load(nested_ptr + at // BLOCK, mask=inside, other=0.0)
    value = tl.load(table_ptr + code) * scale + tl.load(offset_ptr)
    tl.store(absmax_ptr + at, value, mask=inside)
