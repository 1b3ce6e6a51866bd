"""NF4 and FP4 blockwise quantization with double quantization, bit for bit as bitsandbytes 0.50 does it on the CPU.

Dettmers et al., QLoRA (arXiv:2305.14314). The flattened weight is cut into blocks of B. With the 16 table values v_c:

    a_i = max |w| over block i        code(w) = argmin_c |w / a_i - v_c|        w' = v_code * a_i

Double quantization stores the scales a_i in 8 bits: offset m = mean(a), residuals a_i - m in blocks of 256 with their
own fp32 maximum A_j, on the dynamic map d: a'_i = d[q_i] * A_j + m. At B = 64 that is 4 + 8/64 + 32/(64*256) = 4.127
bits a weight, against 4.5 without. As in bitsandbytes the codes are chosen for a_i, not a'_i; `encode_4bit` chooses
for any scales.

Bytes per weight at B = 64, bf16: quantize reads 2 and writes 0.56, dequantize reads 0.56 and writes 2: at 10 GB/s
both stop at 3.9 G weights/s. Operations: 2 to find the maximum, about 8 to find a code, so on 16 lanes memory sets
the pace.

Where bitsandbytes is odd, its bits are kept when quantizing: the last, incomplete block divides instead of
multiplying by a reciprocal and its scale is at least 1e-38; NaN gets the last bin. When dequantizing we differ on
purpose: its AVX-512 dequantizer takes wrong scales if the last dimension is a multiple of 16 but not of the block,
and flushes subnormals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress_kernels.backend import backend
from compress_kernels.codes import BLOCKS, KINDS, NESTED_BLOCK

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Blockwise4bit:
    """A tensor of n weights in 4-bit codes.

    codes: uint8 [ceil(n/2)], the first weight of a pair in the high nibble; absmax: fp32 [ceil(n/block)], or uint8
    codes of it if double quantized; nested_absmax: fp32 [ceil(len(absmax)/256)] or None; offset: fp32 scalar or None.
    """

    codes: Tensor
    absmax: Tensor
    nested_absmax: Tensor | None
    offset: Tensor | None
    block: int
    kind: str


def _check(kind: str, block: int, dtype: torch.dtype) -> None:
    if kind not in KINDS:
        raise ValueError(f"unknown 4-bit kind {kind!r}: expected one of {', '.join(KINDS)}")
    if block not in BLOCKS:
        raise ValueError(f"block {block} is not supported: expected one of {', '.join(map(str, BLOCKS))}")
    if dtype not in DTYPES:
        raise TypeError(f"dtype {dtype} is not supported: expected torch.bfloat16, torch.float16 or torch.float32")


def _check_scales(weights: int, absmax: Tensor, block: int) -> None:
    blocks = -(-weights // block)
    if absmax.dtype != torch.float32 or absmax.shape != (blocks,):
        raise ValueError(f"absmax is {absmax.dtype} {tuple(absmax.shape)}: expected torch.float32 ({blocks},)")


def _quantize(weights: Tensor, block: int, kind: str) -> tuple[Tensor, Tensor]:
    return backend(weights.device).quantize_4bit(weights.contiguous().view(-1), block, kind)


def _quantize_fake(weights: Tensor, block: int, _kind: str) -> tuple[Tensor, Tensor]:
    count = weights.numel()
    codes = weights.new_empty((count + 1) // 2, dtype=torch.uint8)
    return codes, weights.new_empty((count + block - 1) // block, dtype=torch.float32)


def _encode(weights: Tensor, absmax: Tensor, block: int, kind: str) -> Tensor:
    return backend(weights.device).encode_4bit(weights.contiguous().view(-1), absmax.contiguous(), block, kind)


def _encode_fake(weights: Tensor, *_: object) -> Tensor:
    return weights.new_empty((weights.numel() + 1) // 2, dtype=torch.uint8)


def _dequantize(
    codes: Tensor, absmax: Tensor, shape: Sequence[int], block: int, kind: str, dtype: torch.dtype
) -> Tensor:
    chosen = backend(codes.device)
    flat = chosen.dequantize_4bit(codes.contiguous(), absmax.contiguous(), math.prod(shape), block, kind, dtype)
    return flat.view(list(shape))


def _dequantize_fake(
    codes: Tensor, _absmax: Tensor, shape: Sequence[int], _block: int, _kind: str, dtype: torch.dtype
) -> Tensor:
    return codes.new_empty(list(shape), dtype=dtype)


def _quantize_absmax(residual: Tensor) -> tuple[Tensor, Tensor]:
    return backend(residual.device).quantize_absmax(residual.contiguous())


def _quantize_absmax_fake(residual: Tensor) -> tuple[Tensor, Tensor]:
    nested = residual.new_empty((residual.numel() + NESTED_BLOCK - 1) // NESTED_BLOCK)
    return torch.empty_like(residual, dtype=torch.uint8), nested


def _dequantize_absmax(codes: Tensor, nested_absmax: Tensor, offset: Tensor) -> Tensor:
    return backend(codes.device).dequantize_absmax(codes.contiguous(), nested_absmax.contiguous(), offset)


def _dequantize_absmax_fake(codes: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)


for _schema, _function, _fake in (
    ("quantize_4bit(Tensor weights, int block, str kind) -> (Tensor, Tensor)", _quantize, _quantize_fake),
    ("encode_4bit(Tensor weights, Tensor absmax, int block, str kind) -> Tensor", _encode, _encode_fake),
    (
        "dequantize_4bit(Tensor codes, Tensor absmax, SymInt[] shape, int block, str kind, ScalarType dtype) -> Tensor",
        _dequantize,
        _dequantize_fake,
    ),
    ("quantize_absmax(Tensor residual) -> (Tensor, Tensor)", _quantize_absmax, _quantize_absmax_fake),
    (
        "dequantize_absmax(Tensor codes, Tensor nested_absmax, Tensor offset) -> Tensor",
        _dequantize_absmax,
        _dequantize_absmax_fake,
    ),
):
    _name = "compress_kernels::" + _schema.split("(")[0]
    torch.library.define(_name, _schema[_schema.index("(") :])
    torch.library.impl(_name, ("cpu", "cuda"), _function)
    torch.library.register_fake(_name, _fake)

_ops = torch.ops.compress_kernels


def quantize_4bit(w: Tensor, *, kind: str = "nf4", block: int = 64, double_quant: bool = True) -> Blockwise4bit:
    """Quantize `w` (bf16, fp16 or fp32, any shape with at least one element, taken flattened).

    Raises ValueError for an unknown kind or block or an empty tensor, TypeError for another dtype.
    """
    _check(kind, block, w.dtype)
    if w.numel() == 0:
        raise ValueError(f"cannot quantize an empty tensor of shape {tuple(w.shape)}: expected at least one element")
    codes, absmax = _ops.quantize_4bit(w.detach(), block, kind)
    if not double_quant:
        return Blockwise4bit(codes, absmax, None, None, block, kind)
    quantized, nested_absmax, offset = quantize_scales(absmax)
    return Blockwise4bit(codes, quantized, nested_absmax, offset, block, kind)


def quantize_scales(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Double quantization of block scales fp32 [n]: uint8 codes [n], nested_absmax fp32 [ceil(n/256)], offset fp32."""
    offset = absmax.mean()
    codes, nested_absmax = _ops.quantize_absmax(absmax - offset)
    return codes, nested_absmax, offset


def encode_4bit(w: Tensor, absmax: Tensor, *, kind: str = "nf4", block: int = 64) -> Tensor:
    """The codes of `w` for the given effective scales. absmax: fp32 [ceil(n/block)]; returns uint8 [ceil(n/2)].

    Raises as quantize_4bit, and ValueError if absmax has another dtype or length.
    """
    _check(kind, block, w.dtype)
    _check_scales(w.numel(), absmax, block)
    codes: Tensor = _ops.encode_4bit(w.detach(), absmax, block, kind)
    return codes


def effective_absmax(q: Blockwise4bit) -> Tensor:
    """The block scales that decoding uses: fp32 [ceil(n/block)]."""
    if q.nested_absmax is None or q.offset is None:
        return q.absmax
    absmax: Tensor = _ops.dequantize_absmax(q.absmax, q.nested_absmax, q.offset)
    return absmax


def dequantize_4bit(q: Blockwise4bit, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The weights as `dtype` in `shape`. Raises ValueError if the shape does not hold as many weights as q does."""
    _check(q.kind, q.block, dtype)
    count = math.prod(shape)
    if (count + 1) // 2 != q.codes.numel():
        raise ValueError(f"shape {tuple(shape)} has {count} weights, the codes hold {2 * q.codes.numel()} or one less")
    absmax = effective_absmax(q)
    _check_scales(count, absmax, q.block)
    weights: Tensor = _ops.dequantize_4bit(q.codes, absmax, list(shape), q.block, q.kind, dtype)
    return weights
