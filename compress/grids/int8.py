"""INT8, symmetric, one scale per output channel: w ~ q * absmax / 127 with q in [-127, 127].

The layout (int8 codes, fp32 absmax) is that of LLM.int8 (arXiv 2208.07339, sec. 2.1) as bitsandbytes stores it. -128 is
not used, so that the grid is symmetric and the product of two codes fits the hardware's instructions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.grids.base import Encoded

LEVELS = 127


@dataclass(frozen=True)
class Int8:
    """Per-channel INT8."""

    def encode(self, weight: Tensor) -> Encoded:
        """Codes int8 [out, in] and absmax fp32 [out]."""
        absmax = weight.detach().float().abs().amax(dim=1)
        return Encoded({"codes": _round(weight.float(), absmax), "absmax": absmax}, weight.shape, weight.dtype)

    def decode(self, encoded: Encoded) -> Tensor:
        """[out, in] in the type the weight had."""
        scale = encoded.parts["absmax"] / LEVELS
        return (encoded.parts["codes"].float() * scale[:, None]).to(encoded.dtype)

    def bits(self) -> float:
        """The scales vanish in a row of any length."""
        return 8.0


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Dynamic per-token INT8 of activations: codes int8 [..., features] and absmax fp32 [..., 1]."""
    absmax = x.detach().float().abs().amax(dim=-1, keepdim=True)
    return _round(x.float(), absmax.squeeze(-1)), absmax


def fake_quantize(x: Tensor) -> Tensor:
    """Rounds every row of `x` to its INT8 grid, with a straight-through gradient (arXiv 1308.3432).

    The same function stands for weights (a row is an output channel) and for activations (a row is a token).
    """
    absmax = x.detach().float().abs().amax(dim=-1, keepdim=True)
    rounded = (_round(x.detach().float(), absmax.squeeze(-1)).float() * (absmax / LEVELS)).to(x.dtype)
    return x + (rounded - x).detach()


def _round(x: Tensor, absmax: Tensor) -> Tensor:
    scale = torch.where(absmax > 0, LEVELS / absmax, torch.zeros_like(absmax))
    return (x * scale[..., None]).round_().clamp_(-LEVELS, LEVELS).to(torch.int8)
