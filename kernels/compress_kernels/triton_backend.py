"""The Triton backend: launches of the kernels in triton_{blockwise,rows,sweep}.py on CUDA tensors.

With TRITON_INTERPRET=1 the same kernels run on CPU tensors, slowly, to check their numbers.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from compress_kernels import triton_blockwise, triton_rows, triton_sweep
from compress_kernels.codes import NESTED_BLOCK, code_table, dynamic_code, dynamic_lookup
from compress_kernels.on_device import on_its_device
from compress_kernels.rows import RowRequest, RowResult
from compress_kernels.sweep import Sweep, Swept
from compress_kernels.tables import ends_of
from compress_kernels.triton_grid_backend import round_weight, round_weight_backward
from compress_kernels.triton_linear_backend import decode_rows_4bit, linear_4bit, linear_int8, quantize_rows_int8

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
    "sweep_columns",
]

TILE = 1024
WEIGHTS_PER_PROGRAM = 2048
SWEPT_ROWS = 8


def _quantize(weights: Tensor, given: Tensor | None, absmax: Tensor, block: int, kind: str) -> Tensor:
    table = code_table(kind, weights.device)
    codes = torch.empty((weights.numel() + 1) // 2, dtype=torch.uint8, device=weights.device)
    rows = max(1, WEIGHTS_PER_PROGRAM // block)
    triton_blockwise.quantize_kernel[(triton.cdiv(absmax.numel(), rows),)](
        weights,
        absmax if given is None else given,
        absmax,
        codes,
        table.bounds,
        table.order,
        weights.numel(),
        BLOCK=block,
        ROWS=rows,
        GIVEN=given is not None,
        enable_fp_fusion=False,
    )
    return codes


@on_its_device
def quantize_4bit(weights: Tensor, block: int, kind: str) -> tuple[Tensor, Tensor]:
    """See reference.quantize_4bit."""
    absmax = torch.empty(triton.cdiv(weights.numel(), block), dtype=torch.float32, device=weights.device)
    return _quantize(weights, None, absmax, block, kind), absmax


@on_its_device
def encode_4bit(weights: Tensor, absmax: Tensor, block: int, kind: str) -> Tensor:
    """See reference.encode_4bit."""
    return _quantize(weights, absmax, absmax, block, kind)


@on_its_device
def dequantize_4bit(codes: Tensor, absmax: Tensor, count: int, block: int, kind: str, dtype: torch.dtype) -> Tensor:
    """See reference.dequantize_4bit."""
    out = torch.empty(count, dtype=dtype, device=codes.device)
    values = code_table(kind, codes.device).values
    triton_blockwise.dequantize_kernel[(triton.cdiv(count, TILE),)](
        codes, absmax, values, out, count, BLOCK=block, TILE=TILE, enable_fp_fusion=False
    )
    return out


@on_its_device
def quantize_absmax(residual: Tensor) -> tuple[Tensor, Tensor]:
    """See reference.quantize_absmax."""
    count = residual.numel()
    blocks = triton.cdiv(count, NESTED_BLOCK)
    codes = torch.empty(count, dtype=torch.uint8, device=residual.device)
    nested = torch.empty(blocks, dtype=torch.float32, device=residual.device)
    lookup = dynamic_lookup(residual.device)
    triton_blockwise.quantize_absmax_kernel[(blocks,)](
        residual, lookup, codes, nested, count, BLOCK=NESTED_BLOCK, enable_fp_fusion=False
    )
    return codes, nested


@on_its_device
def dequantize_absmax(codes: Tensor, nested_absmax: Tensor, offset: Tensor) -> Tensor:
    """See reference.dequantize_absmax."""
    count = codes.numel()
    absmax = torch.empty(count, dtype=torch.float32, device=codes.device)
    table = dynamic_code(codes.device)
    triton_blockwise.dequantize_absmax_kernel[(triton.cdiv(count, TILE),)](
        codes, nested_absmax, table, offset, absmax, count, BLOCK=NESTED_BLOCK, TILE=TILE, enable_fp_fusion=False
    )
    return absmax


@on_its_device
def divergence_rows(request: RowRequest) -> RowResult:
    """See reference.divergence_rows."""
    rows, vocab = request.student.shape
    device = request.student.device
    outputs = (torch.empty(rows, dtype=torch.float32, device=device) for _ in range(4))
    kl, weighted, nll_student, nll_teacher = outputs
    terms = request.terms
    top1 = torch.zeros(rows, dtype=torch.uint8, device=device)
    triton_rows.divergence_kernel[(rows,)](
        request.student,
        request.teacher,
        kl if request.labels is None else request.labels,
        kl,
        weighted,
        nll_student,
        nll_teacher,
        top1,
        vocab,
        1.0 / request.temperature,
        *terms.as_list(),
        request.ce,
        LABELS=request.labels is not None,
        PLAIN=request.temperature == 1.0,
        GRADIENT=request.want_gradient,
        TOP1=request.want_top1,
        REVERSE=terms.reverse_kl != 0.0,
        JS=terms.js != 0.0,
        SKEW=terms.skew_kl != 0.0,
        SKEW_REVERSE=terms.skew_reverse_kl != 0.0,
        TILE=min(2048, triton.next_power_of_2(vocab)),
        num_warps=8,
        enable_fp_fusion=True,
    )
    return RowResult(kl, weighted, nll_student, nll_teacher, top1.bool())


@on_its_device
def sweep_columns(request: Sweep) -> Swept:
    """See reference.sweep_columns."""
    work = request.work.contiguous()
    rows, columns = work.shape
    parts = [request.coupling, request.pivot, request.gain, request.scale, request.table]
    coupling, pivot, gain, scale, table = (part.contiguous() for part in parts)
    anchor = work if request.anchor is None else request.anchor.contiguous()
    offset = work if request.offset is None else request.offset.contiguous()
    bounds, ends = (table[1:] + table[:-1]) / 2, ends_of(request.table)
    levels, aimed, moved = (torch.empty_like(work) for _ in range(3))
    triton_sweep.sweep_kernel[(triton.cdiv(rows, SWEPT_ROWS),)](
        work,
        anchor,
        coupling,
        pivot,
        gain,
        scale,
        offset,
        table,
        bounds,
        levels,
        aimed,
        moved,
        rows,
        columns,
        ends.first,
        ends.last,
        ANCHORED=request.anchor is not None,
        SHIFTED=request.offset is not None,
        UNIFORM=ends.uniform,
        BOUNDS=0 if ends.uniform else len(bounds),
        ROWS=SWEPT_ROWS,
        COLUMNS=triton.next_power_of_2(columns),
        num_warps=4,
        enable_fp_fusion=False,
    )
    return Swept(levels, aimed, moved)
