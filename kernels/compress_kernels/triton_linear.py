"""Triton kernels of the linear layers on INT8 and on 4-bit weights. Results are specified by reference.py.

INT8: a program makes a tile of outputs; it reads its tokens once for their absmax and once more, then out of the
cache, to quantize them on the way into the product, so codes never go to memory. 4-bit: a program multiplies one
token with a few rows of weights, decoded in registers; many tokens decode the matrix first."""

# ruff: noqa: PLR0913, PLR0917 - a kernel takes pointers one by one and is one function
from __future__ import annotations

import triton
import triton.language as tl

LEVELS = tl.constexpr(127.0)
INTEGER_MAGIC = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds to an integer, ties to even


@triton.jit
def _scale_of(absmax):  # type: ignore[no-untyped-def]
    one = tl.full(absmax.shape, 1.0, tl.float32)
    return tl.where(absmax > 0.0, tl.div_rn(one, absmax) * LEVELS, 0.0)


@triton.jit
def _quantized(x, scale):  # type: ignore[no-untyped-def]
    v = x * scale
    v = tl.where(v <= float("inf"), v, 0.0)  # NaN does not compare
    v = tl.where(v > LEVELS, LEVELS, tl.where(v < -LEVELS, -LEVELS, v))
    return ((v + INTEGER_MAGIC) - INTEGER_MAGIC).to(tl.int8)


@triton.jit
def _magnitude_bits(x):  # type: ignore[no-untyped-def]
    # as integers: NaNs lie above infinity, so a NaN wins, as in torch's max
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def quantize_rows_kernel(x_ptr, codes_ptr, absmax_ptr, width, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row: absmax, then codes."""
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros((TILE,), tl.int32)
    for start in range(0, width, TILE):
        at = start + tl.arange(0, TILE)
        x = tl.load(x_ptr + row * width + at, mask=at < width, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, _magnitude_bits(x))
    absmax = tl.max(largest, axis=0, keep_dims=True).to(tl.float32, bitcast=True)
    tl.store(absmax_ptr + row + tl.arange(0, 1), absmax)
    scale = _scale_of(absmax)
    for start in range(0, width, TILE):
        at = start + tl.arange(0, TILE)
        x = tl.load(x_ptr + row * width + at, mask=at < width, other=0.0).to(tl.float32)
        tl.store(codes_ptr + row * width + at, _quantized(x, scale), mask=at < width)


@triton.jit
def linear_int8_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    codes_ptr,
    absmax_ptr,
    bias_ptr,
    y_ptr,
    rows,
    width,
    outs,
    UNIT: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTS: tl.constexpr,
    STEP: tl.constexpr,
):
    """A tile [ROWS, OUTS] of the layer: token scales, quantization, product and scaling in one."""
    m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(1).to(tl.int64) * OUTS + tl.arange(0, OUTS)
    k = tl.arange(0, STEP)
    x_at = x_ptr + m[:, None] * width + k[None, :]
    w_at = codes_ptr + n[None, :] * width + k[:, None]
    largest = tl.zeros((ROWS,), tl.int32)
    for start in range(0, width, STEP):
        inside = (m[:, None] < rows) & (start + k[None, :] < width)
        x = tl.load(x_at + start, mask=inside, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.max(_magnitude_bits(x), axis=1))
    token = largest.to(tl.float32, bitcast=True)
    scale = _scale_of(token)
    product = tl.zeros((ROWS, OUTS), tl.int32)
    for start in range(0, width, STEP):
        inside = (m[:, None] < rows) & (start + k[None, :] < width)
        x = tl.load(x_at + start, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(w_at + start, mask=(n[None, :] < outs) & (start + k[:, None] < width), other=0)
        product = tl.dot(_quantized(x, scale[:, None]), w, product, out_dtype=tl.int32)
    absmax = tl.load(absmax_ptr + n, mask=n < outs, other=0.0)
    y = product.to(tl.float32) * (token[:, None] * absmax[None, :]) * UNIT
    if BIAS:
        y += tl.load(bias_ptr + n, mask=n < outs, other=0.0).to(tl.float32)[None, :]
    at = y_ptr + m[:, None] * outs + n[None, :]
    tl.store(at, y.to(y_ptr.dtype.element_ty), mask=(m[:, None] < rows) & (n[None, :] < outs))


@triton.jit
def decode_rows_kernel(  # type: ignore[no-untyped-def]
    codes_ptr,
    scales_ptr,
    offsets_ptr,
    table_ptr,
    ids_ptr,
    out_ptr,
    width,
    BLOCK: tl.constexpr,
    OFFSETS: tl.constexpr,
    CHOSEN: tl.constexpr,
    TILE: tl.constexpr,
):
    """TILE weights of a row: the row ids[i] if CHOSEN, else row i."""
    row = tl.program_id(0).to(tl.int64)
    source = row
    if CHOSEN:
        source = tl.load(ids_ptr + row)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = column < width
    at = source * width + column
    byte = tl.load(codes_ptr + at // 2, mask=inside, other=0).to(tl.int32)
    code = tl.where(at % 2 == 0, byte >> 4, byte & 15)
    value = tl.load(table_ptr + code) * tl.load(scales_ptr + at // BLOCK, mask=inside, other=0.0).to(tl.float32)
    if OFFSETS:
        value += tl.load(offsets_ptr + at // BLOCK, mask=inside, other=0.0)
    tl.store(out_ptr + row * width + column, value.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def linear_4bit_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    codes_ptr,
    scales_ptr,
    offsets_ptr,
    table_ptr,
    bias_ptr,
    y_ptr,
    width,
    outs,
    BLOCK: tl.constexpr,
    OFFSETS: tl.constexpr,
    BIAS: tl.constexpr,
    OUTS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """OUTS outputs of one token; PAIRS bytes of each weight row at a time."""
    n = tl.program_id(0).to(tl.int64) * OUTS + tl.arange(0, OUTS)
    row = tl.program_id(1).to(tl.int64)
    total = tl.zeros((OUTS, PAIRS), tl.float32)
    for start in range(0, width // 2, PAIRS):
        pair = start + tl.arange(0, PAIRS)
        inside = (n[:, None] < outs) & (pair[None, :] < width // 2)
        byte = tl.load(codes_ptr + n[:, None] * (width // 2) + pair[None, :], mask=inside, other=0).to(tl.int32)
        block = (n[:, None] * width + 2 * pair[None, :]) // BLOCK
        scale = tl.load(scales_ptr + block, mask=inside, other=0.0).to(tl.float32)
        first = tl.load(table_ptr + (byte >> 4)) * scale
        second = tl.load(table_ptr + (byte & 15)) * scale
        if OFFSETS:
            offset = tl.load(offsets_ptr + block, mask=inside, other=0.0)
            first += offset
            second += offset
        there = pair < width // 2
        even = tl.load(x_ptr + row * width + 2 * pair, mask=there, other=0.0).to(tl.float32)
        odd = tl.load(x_ptr + row * width + 2 * pair + 1, mask=there, other=0.0).to(tl.float32)
        total += first * even[None, :] + second * odd[None, :]
    y = tl.sum(total, axis=1)
    if BIAS:
        y += tl.load(bias_ptr + n, mask=n < outs, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * outs + n, y.to(y_ptr.dtype.element_ty), mask=n < outs)
