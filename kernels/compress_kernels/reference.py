"""The specification of every operation in plain torch; also the backend where there is no compiler.

Blockwise 4-bit follows bitsandbytes 0.50.2 on the CPU to the bit (`backends/default/ops.py` for the codes,
`csrc/cpu_ops.cpp` for the nested 8-bit scales). The distillation loss: reference_rows.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compress_kernels.codes import INT8_LEVELS, INT8_UNIT, NESTED_BLOCK, code_table, dynamic_code, dynamic_lookup
from compress_kernels.grid_weight import LatentGradients, LatentWeight
from compress_kernels.int8_product import int8_product
from compress_kernels.reference_rows import divergence_rows, kl_loss, weighted_divergence  # noqa: F401 - part of it
from compress_kernels.sweep import Sweep, Swept

ABSMAX_FLOOR = 1e-38


def _blocks_of(count: int, block: int) -> tuple[int, int]:
    """(number of complete blocks, weights in them)."""
    complete = count // block
    return complete, complete * block


def _divisor(absmax: Tensor) -> Tensor:
    """absmax kept away from zero, with its sign: an effective scale (offset + residual) can be slightly negative."""
    return torch.copysign(absmax.abs().clamp(min=ABSMAX_FLOOR), absmax)


def quantize_4bit(weights: Tensor, block: int, kind: str) -> tuple[Tensor, Tensor]:
    """Codes and block scales. weights: [n]; returns uint8 [ceil(n/2)] and fp32 [ceil(n/block)]."""
    values = weights.float()
    complete, full = _blocks_of(values.numel(), block)
    absmax = values[:full].view(complete, block).abs().amax(dim=1)
    if full < values.numel():
        absmax = torch.cat([absmax, values[full:].abs().amax().clamp(min=ABSMAX_FLOOR).view(1)])
    return encode_4bit(weights, absmax, block, kind), absmax


def encode_4bit(weights: Tensor, absmax: Tensor, block: int, kind: str) -> Tensor:
    """The nearest codes for given scales. weights: [n], absmax: fp32 [ceil(n/block)]; returns uint8 [ceil(n/2)].

    A complete block multiplies by the reciprocal, the incomplete last one divides: the two round differently, and
    bitsandbytes does exactly this. NaN gets the last bin.
    """
    table = code_table(kind, weights.device)
    values = weights.float()
    complete, full = _blocks_of(values.numel(), block)
    divisor = _divisor(absmax)
    scaled = (values[:full].view(complete, block) * (1.0 / divisor[:complete, None])).view(-1)
    if full < values.numel():
        scaled = torch.cat([scaled, values[full:] / divisor[complete]])
    if scaled.numel() % 2:
        scaled = F.pad(scaled, (0, 1))
    codes = table.order[torch.bucketize(scaled.clamp(-1, 1), table.bounds)]
    return (codes[::2] << 4) | codes[1::2]


def dequantize_4bit(codes: Tensor, absmax: Tensor, count: int, block: int, kind: str, dtype: torch.dtype) -> Tensor:
    """table[code] * absmax, rounded once to `dtype`. codes: uint8 [ceil(n/2)], absmax: fp32; returns [n]."""
    table = code_table(kind, codes.device)
    index = torch.stack([codes >> 4, codes & 15], dim=1).view(-1)[:count]
    scale = absmax.repeat_interleave(block)[:count]
    return (table.values[index.int()] * scale).to(dtype)


def quantize_absmax(residual: Tensor) -> tuple[Tensor, Tensor]:
    """8-bit dynamic codes in blocks of 256. residual: fp32 [b]; returns uint8 [b] and fp32 [ceil(b/256)].

    A NaN does not count towards the block's maximum and gets code 0, and so does a block of zeros (0 * (1/0) is NaN).
    """
    padded = F.pad(residual, (0, -residual.numel() % NESTED_BLOCK)).view(-1, NESTED_BLOCK)
    nested = padded.abs().nan_to_num(nan=0.0, posinf=float("inf")).amax(dim=1)
    scaled = (padded * (1.0 / nested)[:, None]).clamp(-1, 1)
    point = ((scaled + 1.0) * 0.5 * 65535 + 0.5).nan_to_num(nan=0.0).int()
    codes = dynamic_lookup(residual.device)[point]
    return codes.view(-1)[: residual.numel()].contiguous(), nested


def dequantize_absmax(codes: Tensor, nested_absmax: Tensor, offset: Tensor) -> Tensor:
    """Effective block scales: dynamic[code] * nested + offset, each step rounded. Returns fp32 [b]."""
    scale = nested_absmax.repeat_interleave(NESTED_BLOCK)[: codes.numel()]
    return dynamic_code(codes.device)[codes.int()] * scale + offset


def quantize_rows_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 [M, K] and absmax fp32 [M] of rows; what is no number gets code 0."""
    values = x.float()
    absmax = values.abs().amax(dim=1)
    scale = torch.where(absmax > 0, absmax.reciprocal() * INT8_LEVELS, torch.zeros_like(absmax))
    scaled = (values * scale[:, None]).round().clamp(-INT8_LEVELS, INT8_LEVELS)
    return scaled.nan_to_num(nan=0.0).to(torch.int8), absmax


def linear_int8(x: Tensor, codes: Tensor, absmax: Tensor, bias: Tensor | None) -> Tensor:
    """x: [..., K], codes: int8 [N, K], absmax: fp32 [N], bias: [N] or None; returns [..., N] in the type of x."""
    tokens, token_absmax = quantize_rows_int8(x.view(-1, codes.shape[1]))
    product = int8_product(tokens, codes)
    y = product * (token_absmax[:, None] * absmax) * INT8_UNIT
    return (y if bias is None else y + bias).to(x.dtype).view(*x.shape[:-1], -1)


def decode_rows_4bit(
    codes: Tensor,
    scales: Tensor,
    table: Tensor,
    block: int,
    offsets: Tensor | None,
    ids: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """table[code] * scale + offset, each step rounded, then rounded to `dtype`: all rows, or those of `ids`.

    codes: uint8 [N, K / 2], scales: [N K / block], table: fp32 [16], offsets: fp32 as scales, ids: int64 [n].
    """
    outs, width = codes.shape[0], 2 * codes.shape[1]
    ids = torch.arange(outs, device=codes.device) if ids is None else ids
    chosen = codes[ids]
    nibbles = torch.stack([chosen >> 4, chosen & 15], dim=2).view(len(ids), width)
    place = (ids[:, None] * width + torch.arange(width, device=codes.device)) // block
    weights = table[nibbles.int()] * scales.float()[place]
    return (weights if offsets is None else weights + offsets[place]).to(dtype)


def linear_4bit(
    x: Tensor, codes: Tensor, scales: Tensor, table: Tensor, block: int, offsets: Tensor | None, bias: Tensor | None
) -> Tensor:
    """x: [..., K], bias: [N] or None, the others as in decode_rows_4bit; returns [..., N] in the type of x."""
    weight = decode_rows_4bit(codes, scales, table, block, offsets, None, x.dtype)
    return F.linear(x, weight, None if bias is None else bias.to(x.dtype))


def sweep_columns(request: Sweep) -> Swept:
    """Levels of one block of columns; see sweep.py. Columns are rows in memory here, for speed."""
    work, scale = request.work.t().clone(), request.scale.t()
    anchor = None if request.anchor is None else request.anchor.t()
    offset = torch.zeros_like(scale) if request.offset is None else request.offset.t()
    inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
    bounds = (request.table[1:] + request.table[:-1]) / 2
    levels, moved = torch.empty_like(work), torch.empty_like(work)
    for j in range(len(work)):
        x = work[j] * request.pivot[j]
        x = x if anchor is None else x + anchor[j]
        aimed = (x - offset[j]) * inverse[j]
        if request.uniform:
            levels[j] = aimed.round().clamp_(request.table[0], request.table[-1])
        else:
            levels[j] = request.table[torch.bucketize(aimed, bounds)]
        value = levels[j] * scale[j] + offset[j]
        moved[j] = (x - value if anchor is None else value - anchor[j]) * request.gain[j]
        work[j] = x
        # not addr_: that may fuse the product with the sum, and every product is rounded here
        work[j + 1 :] -= request.coupling[j, j + 1 :, None] * moved[j]
    return Swept(levels.t().contiguous(), work.t().contiguous(), moved.t().contiguous())


def round_weight(grid: LatentWeight, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight [rows, columns] in `dtype`, rounded once from fp32, and codes uint8 [rows, columns]."""
    table = grid.table
    if grid.uniform:
        codes = (grid.latent.round().clamp(float(table[0]), float(table[-1])) - table[0]).long()
    else:
        codes = torch.bucketize(grid.latent, (table[1:] + table[:-1]) / 2)
    weight = table[codes].view(grid.scale.numel(), -1) * grid.scale.view(-1, 1)
    weight = weight if grid.shift is None else weight + grid.shift.view(-1, 1)
    return weight.view(grid.latent.shape).to(dtype), codes.to(torch.uint8)


def round_weight_backward(grid: LatentWeight, codes: Tensor, gradient: Tensor) -> LatentGradients:
    """See grid_weight.py; sums in fp32."""
    g = gradient.float().reshape(grid.scale.numel(), -1)
    low, high = grid.reach
    inside = (grid.latent >= low) & (grid.latent <= high)
    of_latent = (g * grid.scale.view(-1, 1)).view(grid.latent.shape) * inside
    of_scale = (g * grid.table[codes.long()].view_as(g)).sum(1)
    return LatentGradients(of_latent, of_scale.view_as(grid.scale), g.sum(1).view_as(grid.scale))
