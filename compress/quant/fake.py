"""Linear layers that compute as their quantized form will, and train through it.

A weight on a grid is  w = s (q(u) - z) + offset,  with u its latent in units of the block's scale, q the nearest level
and z a zero point. Trained are u, straight through the rounding (arXiv 1308.3432), the scale as s = s_0 (1 + d), and
biases:

    dL/du = s dL/dw  where u is in the table's range, else 0     dL/dd = s_0 * sum over the block of (q(u) - z) dL/dw

In these units a step of u is a fraction of the distance between levels, the same for every block, and d moves a whole
block at once without any rounding: the fast part of the gain (EfficientQAT, arXiv 2407.11062, sec. 3.3). A low-rank
latent u = u_0 + B A is LoRA trained through the quantizer (LR-QAT, arXiv 2406.06385): merging it is exact, since the
sum was rounded all along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from compress_kernels import LatentWeight, round_weight, round_weight_backward
from torch import Tensor, nn

from compress.grids import Grid, Scales, nearest_level, per_column
from compress.quant.inputs import RoundedInputs

MARGIN = 0.02
"""How far inside its cell a latent starts, as a fraction of the cell."""


@dataclass(frozen=True)
class Shift:
    """What is added to a block, [rows, blocks] each: an offset of its own, or a zero point that goes with the scale."""

    offset: Tensor | None
    zero: Tensor | None


class OnLevels(torch.autograd.Function):
    """(latent u [rows, columns], factor d [rows, blocks]) -> weight in `dtype`, rounded; see the module."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, d: Tensor, start: Tensor, shift: Shift, table: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """Round and scale."""
        scale = start * (1 + d)
        moved = shift.offset if shift.zero is None else -scale * shift.zero
        weight, codes = round_weight(LatentWeight(u, scale, moved, table), dtype)
        ctx.save_for_backward(u, scale, start, codes, table, shift.zero)
        return weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Straight through to the latent, exact to the factor."""
        u, scale, start, codes, table, zero = ctx.saved_tensors
        found = round_weight_backward(LatentWeight(u, scale, None, table), codes, gradients[0])
        of_scale = found.scale if zero is None else found.scale - zero * found.shift
        return found.latent if ctx.needs_input_grad[0] else None, of_scale * start, None, None, None, None


class GridWeight(nn.Module):
    """One trainable weight on a grid."""

    start: Tensor
    offset: Tensor | None
    zero: Tensor | None
    table: Tensor

    def __init__(self, levels: Tensor, scales: Scales, goal: Tensor, grid: Grid) -> None:
        """Start on given levels [rows, columns], with latents where `goal` had them, inside their cells."""
        super().__init__()
        self.grid = grid
        self.register_buffer("start", scales.scale.clone(), persistent=False)
        zero = scales.stored.get("zero")
        self.register_buffer("offset", scales.offset if zero is None else None, persistent=False)
        self.register_buffer("zero", None if zero is None else zero.float(), persistent=False)
        self.register_buffer("table", torch.unique(grid.levels).to(levels.device), persistent=False)
        self.latent = nn.Parameter(latent_of(levels.float(), goal.float(), scales, self.table))
        self.factor = nn.Parameter(torch.zeros_like(self.start))
        self.factor.table = True  # type: ignore[attr-defined]  # one number a block: no matrix, to Muon
        self.low_rank: nn.ParameterList | None = None

    def add_low_rank(self, rank: int) -> None:
        """Train u_0 + B A instead of u itself; B starts at zero."""
        rows, columns = self.latent.shape
        a = torch.randn(rank, columns, generator=torch.Generator().manual_seed(rows * columns)) / columns**0.5
        self.low_rank = nn.ParameterList(
            [nn.Parameter(a.to(self.latent.device)), nn.Parameter(a.new_zeros(rows, rank))]
        )

    def whole_latent(self) -> Tensor:
        """u, with what is low-rank in it."""
        if self.low_rank is None:
            return self.latent
        a, b = self.low_rank
        # in bf16 the sum would round to other levels than it does when it is merged
        with torch.autocast(self.latent.device.type, enabled=False):
            return self.latent + b @ a

    def forward(self, dtype: torch.dtype) -> Tensor:
        """The weight as it will be, [rows, columns]."""
        weight: Tensor = OnLevels.apply(  # type: ignore[no-untyped-call]
            self.whole_latent(), self.factor, self.start, Shift(self.offset, self.zero), self.table, dtype
        )
        return weight

    @torch.no_grad()
    def final(self) -> tuple[Tensor, Scales]:
        """Levels and scales to store. Scales that the format rounds are rounded now, with the levels as they are."""
        levels = nearest_level(self.whole_latent().float(), self.table)
        scale = self.start * (1 + self.factor)
        return levels, self.grid.settle(scale, self.offset if self.zero is None else -scale * self.zero)


def latent_of(levels: Tensor, goal: Tensor, scales: Scales, table: Tensor) -> Tensor:
    """`goal` in units of the scales, moved into the cell of its level where it lies outside."""
    columns = levels.shape[1]
    scale = per_column(scales.scale, columns)
    shifted = goal if scales.offset is None else goal - per_column(scales.offset, columns)
    u = torch.where(scale == 0, levels, shifted / scale)
    middle = (table[1:] + table[:-1]) / 2
    low = torch.cat([2 * table[:1] - middle[:1], middle])
    high = torch.cat([middle, 2 * table[-1:] - middle[-1:]])
    cell = torch.bucketize(levels.contiguous(), middle)
    margin = MARGIN * (high - low)[cell]
    return torch.minimum(torch.maximum(u, low[cell] + margin), high[cell] - margin)


class GridLinear(nn.Module):
    """A linear layer on a `GridWeight`, its inputs rounded first if asked for."""

    def __init__(self, weight: GridWeight, bias: nn.Parameter | None, rounding: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.on_grid = weight
        self.bias = bias
        self.rounding = rounding

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        x = self.rounding(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.on_grid(x.dtype), bias)


def put_on_grid(model: nn.Module, weights: Mapping[str, GridWeight], inputs: RoundedInputs | None = None) -> None:
    """Put the layers at the given paths on their grids, in place; they keep their biases, and round their inputs as
    `inputs` says."""
    inputs = inputs or RoundedInputs()
    for path, weight in weights.items():
        parent, _, last = path.rpartition(".")
        module: Any = model.get_submodule(path)
        replacement = GridLinear(weight, getattr(module, "bias", None), partial(inputs.round, path))
        setattr(model.get_submodule(parent), last, replacement)
