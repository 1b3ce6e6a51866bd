"""Launches of the kernels in triton_grid.py on CUDA tensors. Results are specified by reference.py."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from compress_kernels import triton_grid
from compress_kernels.grid_weight import LatentGradients, LatentWeight

TILE = 1024


def round_weight(grid: LatentWeight, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See reference.round_weight."""
    table, count = grid.table, grid.latent.numel()
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
        float(table[0]),
        float(table[-1]),
        SHIFTED=grid.shift is not None,
        UNIFORM=grid.uniform,
        BOUNDS=0 if grid.uniform else len(bounds),
        TILE=TILE,
        enable_fp_fusion=False,
    )
    return weight, codes


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
