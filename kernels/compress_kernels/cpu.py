"""The C backend: thin ctypes calls into csrc/. Results are specified by reference.py."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from compress_kernels.codes import NESTED_BLOCK, code_table, dynamic_code, dynamic_lookup
from compress_kernels.cpu_grid import round_weight, round_weight_backward
from compress_kernels.cpu_linear import (
    DTYPES,
    decode_rows_4bit,
    dequantize_table,
    linear_4bit,
    linear_int8,
    quantize_rows_int8,
)
from compress_kernels.levels import level
from compress_kernels.native import load_library
from compress_kernels.rows import RowRequest, RowResult
from compress_kernels.sweep import Sweep, Swept

__all__ = [
    "decode_rows_4bit",
    "dequantize_4bit",
    "dequantize_absmax",
    "divergence_rows",
    "encode_4bit",
    "linear_4bit",
    "linear_int8",
    "quantize_4bit",
    "quantize_absmax",
    "quantize_rows_int8",
    "round_weight",
    "round_weight_backward",
]


def _threads() -> ctypes.c_int:
    return ctypes.c_int(torch.get_num_threads())


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _quantize(weights: Tensor, given: Tensor | None, measured: Tensor | None, block: int, kind: str) -> Tensor:
    table = code_table(kind, weights.device)
    codes = torch.empty((weights.numel() + 1) // 2, dtype=torch.uint8)
    load_library().ck_quantize_4bit(
        _pointer(weights),
        ctypes.c_int(DTYPES[weights.dtype]),
        ctypes.c_int64(weights.numel()),
        ctypes.c_int64(block),
        _pointer(table.bounds),
        _pointer(table.order),
        _pointer(given),
        _pointer(measured),
        _pointer(codes),
        _threads(),
        ctypes.c_int(level()),
    )
    return codes


def quantize_4bit(weights: Tensor, block: int, kind: str) -> tuple[Tensor, Tensor]:
    """See reference.quantize_4bit."""
    absmax = torch.empty(-(-weights.numel() // block), dtype=torch.float32)
    return _quantize(weights, None, absmax, block, kind), absmax


def encode_4bit(weights: Tensor, absmax: Tensor, block: int, kind: str) -> Tensor:
    """See reference.encode_4bit."""
    return _quantize(weights, absmax, None, block, kind)


def dequantize_4bit(codes: Tensor, absmax: Tensor, count: int, block: int, kind: str, dtype: torch.dtype) -> Tensor:
    """See reference.dequantize_4bit."""
    return dequantize_table(codes, absmax, code_table(kind, codes.device).values, block, None, count, dtype)


def quantize_absmax(residual: Tensor) -> tuple[Tensor, Tensor]:
    """See reference.quantize_absmax."""
    codes = torch.empty(residual.numel(), dtype=torch.uint8)
    nested = torch.empty(-(-residual.numel() // NESTED_BLOCK), dtype=torch.float32)
    lookup = dynamic_lookup(residual.device)
    count = ctypes.c_int64(residual.numel())
    load_library().ck_quantize_absmax(_pointer(residual), count, _pointer(lookup), _pointer(codes), _pointer(nested))
    return codes, nested


def dequantize_absmax(codes: Tensor, nested_absmax: Tensor, offset: Tensor) -> Tensor:
    """See reference.dequantize_absmax."""
    absmax = torch.empty(codes.numel(), dtype=torch.float32)
    load_library().ck_dequantize_absmax(
        _pointer(codes),
        _pointer(nested_absmax),
        _pointer(dynamic_code(codes.device)),
        ctypes.c_float(float(offset)),
        ctypes.c_int64(codes.numel()),
        _pointer(absmax),
    )
    return absmax


def divergence_rows(request: RowRequest) -> RowResult:
    """See reference.divergence_rows."""
    rows, vocab = request.student.shape
    kl, weighted, nll_student, nll_teacher = (torch.empty(rows, dtype=torch.float32) for _ in range(4))
    terms = request.terms.as_list()
    top1 = torch.zeros(rows, dtype=torch.uint8)
    load_library().ck_divergence_rows(
        _pointer(request.student),
        ctypes.c_int(DTYPES[request.student.dtype]),
        _pointer(request.teacher),
        ctypes.c_int(DTYPES[request.teacher.dtype]),
        _pointer(request.labels),
        ctypes.c_int64(rows),
        ctypes.c_int64(vocab),
        ctypes.c_float(request.temperature),
        (ctypes.c_float * len(terms))(*terms),
        ctypes.c_float(request.ce),
        ctypes.c_int(request.want_gradient),
        _pointer(kl),
        _pointer(weighted),
        _pointer(nll_student),
        _pointer(nll_teacher),
        _pointer(top1 if request.want_top1 else None),
        _threads(),
        ctypes.c_int(level()),
    )
    return RowResult(kl, weighted, nll_student, nll_teacher, top1.bool())


def sweep_columns(request: Sweep) -> Swept:
    """See reference.sweep_columns."""
    work = request.work.contiguous().clone()
    parts = [request.coupling, request.pivot, request.gain, request.scale, request.table]
    coupling, pivot, gain, scale, table = (part.contiguous() for part in parts)
    anchor = None if request.anchor is None else request.anchor.contiguous()
    offset = None if request.offset is None else request.offset.contiguous()
    levels, moved = torch.empty_like(work), torch.empty_like(work)
    load_library().ck_sweep_columns(
        _pointer(work),
        _pointer(anchor),
        _pointer(coupling),
        _pointer(pivot),
        _pointer(gain),
        _pointer(scale),
        _pointer(offset),
        _pointer(table),
        ctypes.c_int(len(table)),
        ctypes.c_int(request.uniform),
        _pointer(levels),
        _pointer(moved),
        ctypes.c_int64(work.shape[0]),
        ctypes.c_int64(work.shape[1]),
        _threads(),
    )
    return Swept(levels, work, moved)
