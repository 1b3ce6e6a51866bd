"""The linear layers of the C backend. Called for every layer and token: the types of the C functions are declared once,
so that a call passes plain numbers. Results are specified by reference.py."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from compress_kernels import reference
from compress_kernels.codes import INT8_UNIT
from compress_kernels.int8_product import int8_product
from compress_kernels.levels import level
from compress_kernels.native import load_library

DTYPES: dict[torch.dtype, int] = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
FOUR_BIT_ROWS = 4
"""Up to so many rows decode the weights in registers; above, decoding them once and one GEMM is faster."""
INT8_ROWS = 8
"""Up to so many rows one C call does it all; above, `int8_product` is faster."""

_KINDS = {"p": ctypes.c_void_p, "i": ctypes.c_int, "l": ctypes.c_int64, "f": ctypes.c_float}


@cache
def c_function(name: str, kinds: str) -> Callable[..., int]:
    """The C function `name`; kinds: of its arguments, p(ointer), i(nt), l(ong), f(loat)."""
    found = getattr(load_library(), name)
    found.argtypes = [_KINDS[kind] for kind in kinds]
    return found


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _bias(bias: Tensor | None) -> tuple[int | None, int]:
    return (None, 0) if bias is None else (bias.data_ptr(), DTYPES[bias.dtype])


def quantize_rows_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """See reference.quantize_rows_int8."""
    rows, width = x.shape
    codes, absmax = torch.empty(rows, width, dtype=torch.int8), torch.empty(rows, dtype=torch.float32)
    c_function("ck_quantize_rows_int8", "pillppii")(
        x.data_ptr(),
        DTYPES[x.dtype],
        rows,
        width,
        codes.data_ptr(),
        absmax.data_ptr(),
        torch.get_num_threads(),
        level(),
    )
    return codes, absmax


def linear_int8(x: Tensor, codes: Tensor, absmax: Tensor, bias: Tensor | None) -> Tensor:
    """See reference.linear_int8."""
    outs, width = codes.shape
    rows = x.numel() // width
    y = torch.empty((*x.shape[:-1], outs), dtype=x.dtype)
    kind, threads = DTYPES[x.dtype], torch.get_num_threads()
    if rows <= INT8_ROWS:
        call = c_function("ck_linear_int8", "pillpppiplfii")
        failed = call(
            x.data_ptr(), kind, rows, width, codes.data_ptr(), absmax.data_ptr(), *_bias(bias),
            y.data_ptr(), outs, INT8_UNIT, threads, level(),
        )  # fmt: skip
        if failed:
            raise MemoryError(f"no memory for the codes of {rows} rows of {width}")
        return y
    tokens, token_absmax = quantize_rows_int8(x.view(rows, width))
    product = int8_product(tokens, codes)
    c_function("ck_scale_int8", "ppppipillfii")(
        product.data_ptr(), token_absmax.data_ptr(), absmax.data_ptr(), *_bias(bias),
        y.data_ptr(), kind, rows, outs, INT8_UNIT, threads, level(),
    )  # fmt: skip
    return y


def dequantize_table(
    codes: Tensor, scales: Tensor, table: Tensor, block: int, offsets: Tensor | None, count: int, dtype: torch.dtype
) -> Tensor:
    """The first `count` weights, flat: table[code] * scale + offset, rounded to `dtype`."""
    out = torch.empty(count, dtype=dtype)
    c_function("ck_dequantize_4bit", "ppipppillii")(
        codes.data_ptr(), scales.data_ptr(), DTYPES[scales.dtype], _pointer(offsets), table.data_ptr(), out.data_ptr(),
        DTYPES[dtype], count, block, torch.get_num_threads(), level(),
    )  # fmt: skip
    return out


def decode_rows_4bit(
    codes: Tensor,
    scales: Tensor,
    table: Tensor,
    block: int,
    offsets: Tensor | None,
    ids: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """See reference.decode_rows_4bit."""
    outs, width = codes.shape[0], 2 * codes.shape[1]
    if ids is None:
        return dequantize_table(codes, scales, table, block, offsets, outs * width, dtype).view(outs, width)
    if width % block:
        return reference.decode_rows_4bit(codes, scales, table, block, offsets, ids, dtype)
    out = torch.empty(len(ids), width, dtype=dtype)
    failed = c_function("ck_decode_rows_4bit", "ppipppllplilii")(
        codes.data_ptr(), scales.data_ptr(), DTYPES[scales.dtype], _pointer(offsets), table.data_ptr(), ids.data_ptr(),
        len(ids), width, out.data_ptr(), outs, DTYPES[dtype], block, torch.get_num_threads(), level(),
    )  # fmt: skip
    if failed:
        raise IndexError(f"a row is out of range: expected numbers from 0 to {outs - 1}")
    return out


def linear_4bit(
    x: Tensor, codes: Tensor, scales: Tensor, table: Tensor, block: int, offsets: Tensor | None, bias: Tensor | None
) -> Tensor:
    """See reference.linear_4bit; a few rows are multiplied with fp32 weights, many with weights in the type of x."""
    outs, width = codes.shape[0], 2 * codes.shape[1]
    rows = x.numel() // width
    if rows > FOUR_BIT_ROWS:
        weight = decode_rows_4bit(codes, scales, table, block, offsets, None, x.dtype)
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
    y = torch.empty((*x.shape[:-1], outs), dtype=x.dtype)
    failed = c_function("ck_linear_4bit", "pillppipplpiplii")(
        x.data_ptr(), DTYPES[x.dtype], rows, width, codes.data_ptr(), scales.data_ptr(), DTYPES[scales.dtype],
        _pointer(offsets), table.data_ptr(), block, *_bias(bias), y.data_ptr(), outs, torch.get_num_threads(), level(),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"no memory for {rows} rows of {width}")
    return y
