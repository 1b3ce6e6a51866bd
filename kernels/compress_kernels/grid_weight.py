"""Weights that train through their grid (quantization-aware training): rounded and scaled, and the gradient back.

For every block with a scale s and a shift z, over its latents u, with an ascending table of levels:

    q = the level nearest to u (of two as near, the lower; halves to even where levels are consecutive integers)
    w = q s + z
    dL/du = s dL/dw  where u is in reach of the table, else 0      straight through the rounding (arXiv:1308.3432)
    dL/ds = sum q dL/dw         dL/dz = sum dL/dw

u is in reach up to one level's distance beyond the first and the last. Bytes per weight in bf16: 7 forward (latent in;
weight and code out), 11 backward; about 40 operations, so memory sets the pace. Done with torch operations the lookup
alone is a binary search of 40 ns a weight on the CPU, more than the products that train it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress_kernels.backend import backend
from compress_kernels.tables import ends_of

MOST_ENTRIES = 256


@dataclass(frozen=True)
class LatentWeight:
    """latent fp32 [rows, columns]; scale fp32 [rows, blocks]; shift the same or None; table fp32 [entries]."""

    latent: Tensor
    scale: Tensor
    shift: Tensor | None
    table: Tensor

    @property
    def width(self) -> int:
        """Weights in a block."""
        return self.latent.numel() // max(1, self.scale.numel())

    @property
    def uniform(self) -> bool:
        """Whether the table is consecutive integers."""
        return ends_of(self.table).uniform

    @property
    def reach(self) -> tuple[float, float]:
        """LatentGradients pass to latents in between."""
        ends = ends_of(self.table)
        return ends.low, ends.high


@dataclass(frozen=True)
class LatentGradients:
    """Of latents [rows, columns], scales and shifts [rows, blocks], fp32."""

    latent: Tensor
    scale: Tensor
    shift: Tensor


def round_weight(grid: LatentWeight, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The weight [rows, columns] in `dtype`, and the place of every level in the table, uint8 [rows, columns].

    Raises ValueError if a shape does not fit, a tensor is not fp32, or the table has over 256 entries.
    """
    _check(grid)
    return backend(grid.latent.device).round_weight(grid, dtype)


def round_weight_backward(grid: LatentWeight, codes: Tensor, gradient: Tensor) -> LatentGradients:
    """LatentGradients for dL/dw `gradient` [rows, columns], with the codes that `round_weight` gave.

    Raises ValueError as it does.
    """
    _check(grid)
    if codes.dtype != torch.uint8 or codes.shape != grid.latent.shape or gradient.shape != grid.latent.shape:
        raise ValueError(
            f"codes {codes.dtype} {tuple(codes.shape)} and gradient {tuple(gradient.shape)}: expected both "
            f"{tuple(grid.latent.shape)}, the codes torch.uint8"
        )
    return backend(grid.latent.device).round_weight_backward(grid, codes.contiguous(), gradient.contiguous())


def _check(grid: LatentWeight) -> None:
    tensors = {"latent": grid.latent, "scale": grid.scale, "shift": grid.shift, "table": grid.table}
    for name, tensor in tensors.items():
        if tensor is not None and (tensor.dtype != torch.float32 or not tensor.is_contiguous()):
            raise ValueError(f"{name} is {tensor.dtype}: expected a contiguous torch.float32")
    rows, columns = grid.latent.shape
    blocks = grid.scale.shape[1] if grid.scale.dim() == 2 else 0
    if not blocks or grid.scale.shape[0] != rows or columns % blocks:
        raise ValueError(f"scale is {tuple(grid.scale.shape)}: expected [{rows}, blocks], whole blocks in {columns}")
    if grid.shift is not None and grid.shift.shape != grid.scale.shape:
        raise ValueError(f"shift is {tuple(grid.shift.shape)}: expected {tuple(grid.scale.shape)}")
    if not 2 <= len(grid.table) <= MOST_ENTRIES:
        raise ValueError(f"the table has {len(grid.table)} entries: expected 2 to {MOST_ENTRIES}")
