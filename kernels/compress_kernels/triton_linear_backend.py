"""Launches of the kernels in triton_linear.py; part of the Triton backend (triton_backend.py)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from compress_kernels import triton_linear
from compress_kernels.codes import INT8_UNIT
from compress_kernels.on_device import on_its_device
from compress_kernels.reference import linear_int8 as linear_int8_in_torch

FOUR_BIT_ROWS = 4
"""Up to so many rows decode the weights in registers; above, decoding them once and one GEMM is faster."""
INT8_DOTS = (8, 0)
"""Compute capability from which Triton has the product of INT8 tiles; before, it does not compile."""


@on_its_device
def quantize_rows_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """See reference.quantize_rows_int8."""
    rows, width = x.shape
    codes = torch.empty(rows, width, dtype=torch.int8, device=x.device)
    absmax = torch.empty(rows, dtype=torch.float32, device=x.device)
    triton_linear.quantize_rows_kernel[(rows,)](
        x, codes, absmax, width, TILE=min(1024, triton.next_power_of_2(width)), enable_fp_fusion=False
    )
    return codes, absmax


@on_its_device
def linear_int8(x: Tensor, codes: Tensor, absmax: Tensor, bias: Tensor | None) -> Tensor:
    """See reference.linear_int8."""
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < INT8_DOTS:
        return linear_int8_in_torch(x, codes, absmax, bias)
    outs, width = codes.shape
    rows = x.numel() // width
    y = torch.empty((*x.shape[:-1], outs), dtype=x.dtype, device=x.device)
    tile = 32 if rows > 16 else 16
    triton_linear.linear_int8_kernel[(triton.cdiv(rows, tile), triton.cdiv(outs, 64))](
        x,
        codes,
        absmax,
        absmax if bias is None else bias,
        y,
        rows,
        width,
        outs,
        UNIT=INT8_UNIT,
        BIAS=bias is not None,
        ROWS=tile,
        OUTS=64,
        STEP=32,
        num_warps=8,
        enable_fp_fusion=False,
    )
    return y


@on_its_device
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
    width, rows = 2 * codes.shape[1], codes.shape[0] if ids is None else len(ids)
    out = torch.empty(rows, width, dtype=dtype, device=codes.device)
    tile = min(1024, triton.next_power_of_2(width))
    triton_linear.decode_rows_kernel[(rows, triton.cdiv(width, tile))](
        codes,
        scales,
        table if offsets is None else offsets,
        table,
        codes if ids is None else ids,
        out,
        width,
        BLOCK=block,
        OFFSETS=offsets is not None,
        CHOSEN=ids is not None,
        TILE=tile,
        enable_fp_fusion=False,
    )
    return out


@on_its_device
def linear_4bit(
    x: Tensor, codes: Tensor, scales: Tensor, table: Tensor, block: int, offsets: Tensor | None, bias: Tensor | None
) -> Tensor:
    """See reference.linear_4bit; a few rows are multiplied with the fp32 weights."""
    outs, width = codes.shape[0], 2 * codes.shape[1]
    rows = x.numel() // width
    if rows > FOUR_BIT_ROWS:
        weight = decode_rows_4bit(codes, scales, table, block, offsets, None, x.dtype)
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
    y = torch.empty((*x.shape[:-1], outs), dtype=x.dtype, device=x.device)
    triton_linear.linear_4bit_kernel[(triton.cdiv(outs, 8), rows)](
        x,
        codes,
        scales,
        table if offsets is None else offsets,
        table,
        table if bias is None else bias,
        y,
        width,
        outs,
        BLOCK=block,
        OFFSETS=offsets is not None,
        BIAS=bias is not None,
        OUTS=8,
        PAIRS=128,
    )
    return y
