"""The C backend of weights that train through their grid. Results are specified by reference.py."""

from __future__ import annotations

import torch
from torch import Tensor

from compress_kernels.cpu_linear import DTYPES, c_function
from compress_kernels.grid_weight import LatentGradients, LatentWeight
from compress_kernels.levels import level


def round_weight(grid: LatentWeight, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See reference.round_weight."""
    bounds = (grid.table[1:] + grid.table[:-1]) / 2
    weight = torch.empty(grid.latent.shape, dtype=dtype)
    codes = torch.empty(grid.latent.shape, dtype=torch.uint8)
    c_function("ck_round_weight", "pppppiillpipii")(
        grid.latent.data_ptr(),
        grid.scale.data_ptr(),
        None if grid.shift is None else grid.shift.data_ptr(),
        grid.table.data_ptr(),
        bounds.data_ptr(),
        len(grid.table),
        int(grid.uniform),
        grid.scale.numel(),
        grid.width,
        weight.data_ptr(),
        DTYPES[dtype],
        codes.data_ptr(),
        torch.get_num_threads(),
        level(),
    )
    return weight, codes


def round_weight_backward(grid: LatentWeight, codes: Tensor, gradient: Tensor) -> LatentGradients:
    """See reference.round_weight_backward."""
    low, high = grid.reach
    found = LatentGradients(*(torch.empty_like(x) for x in (grid.latent, grid.scale, grid.scale)))
    c_function("ck_round_weight_backward", "pippppffllpppii")(
        gradient.data_ptr(),
        DTYPES[gradient.dtype],
        grid.latent.data_ptr(),
        codes.data_ptr(),
        grid.scale.data_ptr(),
        grid.table.data_ptr(),
        low,
        high,
        grid.scale.numel(),
        grid.width,
        found.latent.data_ptr(),
        found.scale.data_ptr(),
        found.shift.data_ptr(),
        torch.get_num_threads(),
        level(),
    )
    return found
