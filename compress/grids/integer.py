"""INT4 and INT3 in groups along a row, symmetric or asymmetric, as compressed-tensors (vLLM) stores them.

    symmetric    w = s q         s = absmax / (2^(b-1) - 0.5)   q in -2^(b-1) .. 2^(b-1) - 1
    asymmetric   w = s (q - z)   s = (max - min) / (2^b - 1)    z in the range of q; 0 is always on the grid

Scales are bf16. Codes are packed into int32 words along the row, lowest bits first, as many whole ones as fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.grid_names import integer_name
from compress.grids.base import Encoded, Scales
from compress.grids.blocks import blocks_of, level_of, value_of


@dataclass(frozen=True)
class Integer:
    """Group-wise integers of `bits_per_code` bits."""

    bits_per_code: int = 4
    block: int = 64
    symmetric: bool = True

    @property
    def name(self) -> str:
        """Such as "int4_g64" or "int4_g64_asym"."""
        return integer_name(self.bits_per_code, self.block, self.symmetric)

    @property
    def levels(self) -> Tensor:
        """Signed integers."""
        half = 2 ** (self.bits_per_code - 1)
        return torch.arange(-half, half, dtype=torch.float32)

    def fits(self, shape: Sequence[int]) -> bool:
        """Rows must be whole groups, and whole int32 words."""
        return shape[1] % self.block == 0

    def bits(self) -> float:
        """Code, bf16 scale and, if asymmetric, the zero point."""
        zero = 0 if self.symmetric else self.bits_per_code
        return 32 / (32 // self.bits_per_code) + (16 + zero) / self.block

    def start(self, weight: Tensor) -> Scales:
        """From the extremes of every group."""
        x = blocks_of(weight.float(), self.block)
        half = 2 ** (self.bits_per_code - 1)
        if self.symmetric:
            return self.settle(x.abs().amax(-1) / (half - 0.5), None)
        low, high = x.amin(-1).clamp_max(0), x.amax(-1).clamp_min(0)
        scale = (high - low) / (2 * half - 1)
        # the lowest weight lies on the lowest level: scale * (-half) + offset = low
        return self.settle(scale, low + half * scale)

    def settle(self, scale: Tensor, offset: Tensor | None) -> Scales:
        """Scale to bf16; the offset to a whole number of steps in the range of the codes."""
        scale = scale.bfloat16().float()
        if self.symmetric:
            return Scales(scale)
        half = 2 ** (self.bits_per_code - 1)
        given = torch.zeros_like(scale) if offset is None else offset
        zero = torch.where(scale == 0, torch.zeros_like(scale), -given / scale).round().clamp(-half, half - 1)
        return Scales(scale, -scale * zero, {"zero": zero.to(torch.int8)})

    def encode(self, weight: Tensor) -> Encoded:
        """Round to nearest."""
        scales = self.start(weight)
        return self.pack(level_of(weight, scales, self), scales, weight.dtype)

    def pack(self, levels: Tensor, scales: Scales, dtype: torch.dtype) -> Encoded:
        """Parts `codes` int32 [rows, words], `scale` bf16 [rows, groups] and, if asymmetric, `zero` int8."""
        parts = {"codes": pack_words(levels, self.bits_per_code), "scale": scales.scale.bfloat16(), **scales.stored}
        return Encoded(parts, levels.shape, dtype)

    def unpack(self, encoded: Encoded) -> tuple[Tensor, Scales]:
        """Levels and scales."""
        levels = unpack_words(encoded.parts["codes"], self.bits_per_code, encoded.shape[1])
        scale = encoded.parts["scale"].float()
        if self.symmetric:
            return levels, Scales(scale)
        zero = encoded.parts["zero"]
        return levels, Scales(scale, -scale * zero.float(), {"zero": zero})

    def decode(self, encoded: Encoded) -> Tensor:
        """In the shape and type the weight had."""
        return value_of(*self.unpack(encoded)).to(encoded.dtype)


def pack_words(levels: Tensor, bits: int) -> Tensor:
    """Signed levels [rows, columns] as int32 words [rows, ceil(columns / (32 // bits))], shifted to be unsigned."""
    per_word = 32 // bits
    codes = (levels + 2 ** (bits - 1)).to(torch.int64)
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[1] % per_word))
    shifts = bits * torch.arange(per_word, device=codes.device)
    words = (codes.view(len(codes), -1, per_word) << shifts).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack_words(words: Tensor, bits: int, columns: int) -> Tensor:
    """Inverse of `pack_words`, fp32 [rows, columns]."""
    shifts = bits * torch.arange(32 // bits, device=words.device)
    codes = (words.long()[:, :, None] >> shifts) & (2**bits - 1)
    return codes.reshape(len(words), -1)[:, :columns].float() - 2 ** (bits - 1)
