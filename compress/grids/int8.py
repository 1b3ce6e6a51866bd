"""INT8, symmetric, one scale per output channel: w ~ q * absmax / 127 with q in [-127, 127].

The layout (int8 codes, fp32 absmax) is that of LLM.int8 (arXiv 2208.07339, sec. 2.1) as bitsandbytes stores it. -128 is
not used, so that the grid is symmetric and the product of two codes fits the hardware's instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.grids.base import Encoded, Scales
from compress.grids.blocks import value_of

LEVELS = 127


@dataclass(frozen=True)
class Int8:
    """Per-channel INT8."""

    @property
    def name(self) -> str:
        """ "int8"."""
        return "int8"

    @property
    def block(self) -> int:
        """The whole row."""
        return 0

    @property
    def levels(self) -> Tensor:
        """-127 .. 127."""
        return torch.arange(-LEVELS, LEVELS + 1, dtype=torch.float32)

    def fits(self, shape: Sequence[int]) -> bool:
        """Any shape does."""
        return True

    def start(self, weight: Tensor) -> Scales:
        """The largest magnitude of a row lies on 127."""
        return Scales(weight.detach().float().abs().amax(dim=1, keepdim=True) / LEVELS)

    def settle(self, scale: Tensor, offset: Tensor | None) -> Scales:
        """Scales are fp32: any can be stored (as 127 times itself)."""
        return Scales(scale.float() * LEVELS / LEVELS)

    def encode(self, weight: Tensor) -> Encoded:
        """Codes int8 [out, in] and absmax fp32 [out]."""
        absmax = weight.detach().float().abs().amax(dim=1)
        return Encoded({"codes": _round(weight.float(), absmax), "absmax": absmax}, weight.shape, weight.dtype)

    def pack(self, levels: Tensor, scales: Scales, dtype: torch.dtype) -> Encoded:
        """The same parts for levels and scales of one's own."""
        parts = {"codes": levels.to(torch.int8), "absmax": scales.scale[:, 0] * LEVELS}
        return Encoded(parts, levels.shape, dtype)

    def unpack(self, encoded: Encoded) -> tuple[Tensor, Scales]:
        """Levels and scales."""
        return encoded.parts["codes"].float(), Scales(encoded.parts["absmax"][:, None] / LEVELS)

    def decode(self, encoded: Encoded) -> Tensor:
        """[out, in] in the type the weight had."""
        return value_of(*self.unpack(encoded)).to(encoded.dtype)

    def bits(self) -> float:
        """The scales vanish in a row of any length."""
        return 8.0


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Dynamic per-token INT8 of activations: codes int8 [..., features] and absmax fp32 [..., 1]."""
    absmax = x.detach().float().abs().amax(dim=-1, keepdim=True)
    return _round(x.float(), absmax.squeeze(-1)), absmax


def fake_quantize(x: Tensor, absmax: float | None = None) -> Tensor:
    """Rounds every row of `x` to its INT8 grid, with a straight-through gradient (arXiv 1308.3432).

    The same function stands for weights (a row is an output channel) and for activations (a row is a token).

    Args:
        x: [..., features].
        absmax: one range for all rows, static; numbers beyond it are clipped. By default each row has its own.
    """
    if absmax is None:
        absmax_of = x.detach().float().abs().amax(dim=-1, keepdim=True)
    else:
        absmax_of = torch.full_like(x[..., :1], absmax, dtype=torch.float32)
    rounded = (_round(x.detach().float(), absmax_of.squeeze(-1)).float() * (absmax_of / LEVELS)).to(x.dtype)
    return x + (rounded - x).detach()


def _round(x: Tensor, absmax: Tensor) -> Tensor:
    scale = torch.where(absmax > 0, LEVELS / absmax, torch.zeros_like(absmax))
    return (x * scale[..., None]).round_().clamp_(-LEVELS, LEVELS).to(torch.int8)
