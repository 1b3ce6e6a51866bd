"""The linear layers of the C backend. Called for every layer and token: the types of the C functions are declared once,
so that a call passes plain numbers. Results are specified by reference.py."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from compress_kernels.codes import INT8_UNIT
from compress_kernels.levels import level
from compress_kernels.native import load_library
from compress_kernels.reference import int8_product

DTYPES: dict[torch.dtype, int] = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
INT8_ROWS = 8
"""Up to so many rows one C call does it all; above, `torch._int_mm` is faster."""

_KINDS = {"p": ctypes.c_void_p, "i": ctypes.c_int, "l": ctypes.c_int64, "f": ctypes.c_float}


@cache
def _function(name: str, kinds: str) -> Callable[..., int]:
    """The C function `name`; kinds: of its arguments, p(ointer), i(nt), l(ong), f(loat)."""
    found = getattr(load_library(), name)
    found.argtypes = [_KINDS[kind] for kind in kinds]
    return found


def _bias(bias: Tensor | None) -> tuple[int | None, int]:
    return (None, 0) if bias is None else (bias.data_ptr(), DTYPES[bias.dtype])


def quantize_rows_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """See reference.quantize_rows_int8."""
    rows, width = x.shape
    codes, absmax = torch.empty(rows, width, dtype=torch.int8), torch.empty(rows, dtype=torch.float32)
    _function("ck_quantize_rows_int8", "pillppii")(
        x.data_ptr(), DTYPES[x.dtype], rows, width, codes.data_ptr(), absmax.data_ptr(), torch.get_num_threads(), level()
    )
    return codes, absmax


def linear_int8(x: Tensor, codes: Tensor, absmax: Tensor, bias: Tensor | None) -> Tensor:
    """See reference.linear_int8."""
    outs, width = codes.shape
    rows = x.numel() // width
    y = torch.empty((*x.shape[:-1], outs), dtype=x.dtype)
    kind, threads = DTYPES[x.dtype], torch.get_num_threads()
    if rows <= INT8_ROWS:
        call = _function("ck_linear_int8", "pillpppiplfii")
        failed = call(
            x.data_ptr(), kind, rows, width, codes.data_ptr(), absmax.data_ptr(), *_bias(bias),
            y.data_ptr(), outs, INT8_UNIT, threads, level(),
        )  # fmt: skip
        if failed:
            raise MemoryError(f"no memory for the codes of {rows} rows of {width}")
        return y
    tokens, token_absmax = quantize_rows_int8(x.view(rows, width))
    product = int8_product(tokens, codes)
    _function("ck_scale_int8", "ppppipillfii")(
        product.data_ptr(), token_absmax.data_ptr(), absmax.data_ptr(), *_bias(bias),
        y.data_ptr(), kind, rows, outs, INT8_UNIT, threads, level(),
    )  # fmt: skip
    return y
