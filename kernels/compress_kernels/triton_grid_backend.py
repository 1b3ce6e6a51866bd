"""Launches of the kernels in triton_grid.py on CUDA tensors. Results are specified by reference.py."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from compress_kernels import triton_grid
from compress_kernels.grid_weight import LatentGradients, LatentWeight
from compress_kernels.on_device import on_its_device
from compress_kernels.tables import ends_of

TILE = 1024


@on_its_device
def round_weight(grid: LatentWeight, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See reference.round_weight."""
    table, count, ends = grid.table, grid.latent.numel(), ends_of(grid.table)
    bounds = (table[1:] + table[:-1]) / 2
    weight = torch.empty(grid.latent.shape, dtype=dtype, device=table.device)
    codes = torch.empty(grid.latent.shape, dtype=torch.uint8, device=table.device)
    triton_grid.round_kernel[(triton.cdiv(count, TILE),)](
        grid.latent,
        grid.scale,
        grid.scale if grid.shift is None else grid.shift,
        table,
        bounds,
        weight,
        codes,
        count,
        grid.width,
        ends.first,
        ends.last,
        SHIFTED=grid.shift is not None,
        UNIFORM=ends.uniform,
        BOUNDS=0 if ends.uniform else len(bounds),
        TILE=TILE,
        enable_fp_fusion=False,
    )
    return weight, codes


@on_its_device
def round_weight_backward(grid: LatentWeight, codes: Tensor, gradient: Tensor) -> LatentGradients:
    """See reference.round_weight_backward."""
    found = LatentGradients(*(torch.empty_like(x) for x in (grid.latent, grid.scale, grid.scale)))
    low, high = grid.reach
    blocks, tile = grid.scale.numel(), min(TILE, triton.next_power_of_2(grid.width))
    together = max(1, TILE // tile)
    triton_grid.backward_kernel[(triton.cdiv(blocks, together),)](
        gradient,
        grid.latent,
        codes,
        grid.scale,
        grid.table,
        found.latent,
        found.scale,
        found.shift,
        blocks,
        grid.width,
        low,
        high,
        BLOCKS=together,
        TILE=tile,
        enable_fp_fusion=False,
    )
    return found
