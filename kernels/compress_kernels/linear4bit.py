"""A linear layer and an embedding on 4-bit weights of any table: NF4, FP4, or integers.

A matrix [out, in] is stored as codes uint8 [out, in / 2] (the first weight of a pair in the high nibble), a table of 16
values, and for every `block` weights of the flattened matrix one scale and maybe one offset:

    w = table[code] * scale + offset                y = x @ w^T + bias

Integers are the table -8 ... 7 (INTEGER_TABLE): Q4_0 and symmetric INT4 need no offset, an asymmetric grid has
offset = -scale * (zero - 8). If `in` is a multiple of the block, as in every GGUF type, a block lies within a row.

Bytes per weight at block 64, fp32 scales: 0.5625 against 2 in bf16. One token does two operations with a weight, so
at 10 GB/s a layer runs at 17.8 G weights/s against 5. For many tokens the weights are decoded once to the type of x
(0.56 + 2 bytes each, 4 in fp32) and one GEMM multiplies: 2 M operations a weight, so above M ~ 100 decoding is lost
in it.

A few tokens are multiplied with the weights in fp32, many with weights rounded to the type of x, as a dense layer's
are. The gradient to x decodes again and multiplies; codes and scales have none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compress_kernels.backend import backend
from compress_kernels.codes import BLOCKS
from compress_kernels.dispatch import define, direct

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
INTEGER_TABLE: Tensor = torch.arange(-8, 8, dtype=torch.float32)
"""fp32 [16]: code c stands for c - 8."""


def _check_weight(codes: Tensor, scales: Tensor, table: Tensor, block: int, offsets: Tensor | None) -> None:
    if codes.dtype != torch.uint8 or codes.dim() != 2:
        raise ValueError(f"codes are {codes.dtype} {tuple(codes.shape)}: expected torch.uint8 [out, in / 2]")
    if block not in BLOCKS:
        raise ValueError(f"block {block} is not supported: expected one of {', '.join(map(str, BLOCKS))}")
    blocks = -(-2 * codes.numel() // block)
    if scales.dtype not in DTYPES or scales.shape != (blocks,):
        given = f"scales are {scales.dtype} {tuple(scales.shape)}"
        raise ValueError(f"{given}: expected bf16, fp16 or fp32 ({blocks},), one for every {block} weights")
    if table.dtype != torch.float32 or table.shape != (16,):
        raise ValueError(f"table is {table.dtype} {tuple(table.shape)}: expected torch.float32 (16,)")
    if offsets is not None and (offsets.dtype != torch.float32 or offsets.shape != (blocks,)):
        raise ValueError(f"offsets are {offsets.dtype} {tuple(offsets.shape)}: expected torch.float32 ({blocks},)")


def _check_type(dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise TypeError(f"dtype {dtype} is not supported: expected torch.bfloat16, torch.float16 or torch.float32")


def _linear(
    x: Tensor, codes: Tensor, scales: Tensor, table: Tensor, block: int, offsets: Tensor | None, bias: Tensor | None
) -> Tensor:
    return backend(x.device).linear_4bit(x.contiguous(), codes, scales, table, block, offsets, bias)


def _linear_fake(x: Tensor, codes: Tensor, *_: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], codes.shape[0]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - torch names it
    _, codes, scales, table, block, offsets, bias = inputs
    ctx.save_for_backward(codes, scales, table, offsets)
    ctx.block, ctx.bias = block, None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    codes, scales, table, offsets = ctx.saved_tensors
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = grad @ _ops.decode_rows_4bit(codes, scales, table, ctx.block, offsets, None, grad.dtype)
    if ctx.bias is not None and ctx.needs_input_grad[6]:
        grad_bias = grad.flatten(0, -2).sum(0).to(ctx.bias)
    return grad_x, None, None, None, None, None, grad_bias


def _decode_rows(
    codes: Tensor,
    scales: Tensor,
    table: Tensor,
    block: int,
    offsets: Tensor | None,
    ids: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    return backend(codes.device).decode_rows_4bit(codes, scales, table, block, offsets, ids, dtype)


def _decode_rows_fake(
    codes: Tensor,
    _scales: Tensor,
    _table: Tensor,
    _block: int,
    _offsets: Tensor | None,
    ids: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    rows = codes.shape[0] if ids is None else ids.shape[0]
    return codes.new_empty((rows, 2 * codes.shape[1]), dtype=dtype)


_weight = "Tensor codes, Tensor scales, Tensor table, int block, Tensor? offsets"
define(f"linear_4bit(Tensor x, {_weight}, Tensor? bias) -> Tensor", _linear, _linear_fake)
define(f"decode_rows_4bit({_weight}, Tensor? ids, ScalarType dtype) -> Tensor", _decode_rows, _decode_rows_fake)
torch.library.register_autograd("compress_kernels::linear_4bit", _backward, setup_context=_keep)

_ops = torch.ops.compress_kernels


def linear_4bit(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    table: Tensor,
    block: int,
    offsets: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The layer: [..., in] -> [..., out] in the type of x, differentiable in x and bias.

    Args:
        x: bf16, fp16 or fp32 [..., in].
        codes: uint8 [out, in / 2], contiguous.
        scales: bf16, fp16 or fp32 [out * in / block], rounded up.
        table: fp32 [16].
        block: weights that share a scale: a power of two from 32 to 4096.
        offsets: fp32, as many as scales.
        bias: floating point [out].

    Raises TypeError for another dtype, ValueError for parts that do not fit.
    """
    _check_type(x.dtype)
    _check_weight(codes, scales, table, block, offsets)
    if x.shape[-1] != 2 * codes.shape[1]:
        raise ValueError(f"x is {tuple(x.shape)} and codes are {tuple(codes.shape)}: expected [..., in], [out, in / 2]")
    if direct(x, bias):
        return _linear(x, codes, scales, table, block, offsets, bias)
    y: Tensor = _ops.linear_4bit(x, codes, scales, table, block, offsets, bias)
    return y


def decode_rows_4bit(
    codes: Tensor,
    scales: Tensor,
    table: Tensor,
    block: int,
    offsets: Tensor | None = None,
    ids: Tensor | None = None,
    *,
    dtype: torch.dtype,
) -> Tensor:
    """Rows of the matrix as `dtype` [n, in]: those that `ids` (int64 [n]) name, or all. Raises as linear_4bit, and
    IndexError for a row that is not there."""
    _check_type(dtype)
    _check_weight(codes, scales, table, block, offsets)
    rows: Tensor = _ops.decode_rows_4bit(codes, scales, table, block, offsets, ids, dtype)
    return rows


def embedding_4bit(
    ids: Tensor,
    codes: Tensor,
    scales: Tensor,
    table: Tensor,
    block: int,
    offsets: Tensor | None = None,
    *,
    dtype: torch.dtype,
) -> Tensor:
    """The rows of tokens `ids` (any integer type, any shape): [..., in]; only they are decoded. Raises as
    decode_rows_4bit."""
    flat = ids.reshape(-1).long().contiguous()
    rows = decode_rows_4bit(codes, scales, table, block, offsets, flat, dtype=dtype)
    return rows.view(*ids.shape, rows.shape[1])
