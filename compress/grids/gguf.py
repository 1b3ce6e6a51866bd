"""llama.cpp's block formats Q8_0, Q5_1, Q5_0 and Q4_0: blocks of 32 along a row, scales in fp16.

    Q8_0   w = d q          q in -128..127   d = absmax / 127          34 bytes a block   8.5 bits
    Q5_1   w = d q + m      q in 0..31       d = (max - min) / 31      24                 6.0
    Q5_0   w = d (q - 16)   q in 0..31       d = extreme / -16         22                 5.5
    Q4_0   w = d (q - 8)    q in 0..15       d = extreme / -8          18                 4.5

`extreme` is the weight of largest magnitude with its sign, so that it lies on the level that only one side has. Bytes
and roundings are those of ggml-quants.c (and of `gguf.quants`): the codes are chosen with the unrounded scale, and the
fifth bit of 32 codes is a little-endian word before the nibbles, of which a byte holds codes i and i + 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compress.grids.base import Encoded, Scales
from compress.grids.blocks import blocks_of, per_column, value_of

BLOCK = 32
Kind = Literal["q8_0", "q5_1", "q5_0", "q4_0"]
BITS: dict[str, int] = {"q8_0": 8, "q5_1": 5, "q5_0": 5, "q4_0": 4}
BLOCK_BYTES: dict[str, int] = {"q8_0": 34, "q5_1": 24, "q5_0": 22, "q4_0": 18}


@dataclass(frozen=True)
class GGUF:
    """One of llama.cpp's formats. Stored as its bytes: part `blocks`, uint8 [rows, bytes of a row]."""

    kind: Kind

    @property
    def name(self) -> str:
        """Such as "q4_0"."""
        return self.kind

    @property
    def block(self) -> int:
        """32."""
        return BLOCK

    @property
    def levels(self) -> Tensor:
        """The integers a block's scale is multiplied with."""
        bits, low = BITS[self.kind], self._zero
        return torch.arange(2**bits, dtype=torch.float32) - low

    @property
    def _zero(self) -> int:
        """The code that stands for 0 on a symmetric grid."""
        return {"q8_0": 128, "q5_1": 0, "q5_0": 16, "q4_0": 8}[self.kind]

    def fits(self, shape: Sequence[int]) -> bool:
        """Rows must be whole blocks."""
        return shape[1] % BLOCK == 0

    def bits(self) -> float:
        """8.5, 6, 5.5 or 4.5."""
        return 8 * BLOCK_BYTES[self.kind] / BLOCK

    def start(self, weight: Tensor) -> Scales:
        """As ggml takes them, rounded to fp16."""
        scale, offset = self._unrounded(weight)
        return self.settle(scale, offset)

    def _unrounded(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        x = blocks_of(weight.float(), BLOCK)
        if self.kind == "q8_0":
            return x.abs().amax(-1) / 127, None
        if self.kind == "q5_1":
            low = x.amin(-1)
            return (x.amax(-1) - low) / 31, low
        # of equal magnitudes ggml takes the first
        extreme = x.gather(-1, x.abs().argmax(-1, keepdim=True)).squeeze(-1)
        return extreme / -self._zero, None

    def settle(self, scale: Tensor, offset: Tensor | None) -> Scales:
        """Round to fp16."""
        rounded = offset.half().float() if offset is not None else None
        if self.kind == "q5_1" and rounded is None:
            rounded = torch.zeros_like(scale)
        return Scales(scale.half().float(), rounded)

    def encode(self, weight: Tensor) -> Encoded:
        """Bit for bit as llama.cpp quantizes."""
        scale, offset = self._unrounded(weight)
        x, columns = weight.float(), weight.shape[1]
        inverse = per_column(torch.where(scale == 0, torch.zeros_like(scale), 1 / scale), columns)
        if self.kind == "q8_0":
            product = x * inverse
            levels = product.sign() * (product.abs() + 0.5).floor()  # C's roundf: halves away from zero
        elif offset is not None:
            levels = ((x - per_column(offset, columns)) * inverse + 0.5).trunc()
        else:
            levels = (x * inverse + (self._zero + 0.5)).trunc() - self._zero
        table = self.levels
        levels = levels.clamp(float(table[0]), float(table[-1]))
        return self.pack(levels, self.settle(scale, offset), weight.dtype)

    def pack(self, levels: Tensor, scales: Scales, dtype: torch.dtype) -> Encoded:
        """Lay out blocks as llama.cpp reads them."""
        rows, columns = levels.shape
        blocks = columns // BLOCK
        head = [scales.scale.half()[..., None].contiguous().view(torch.uint8)]
        if scales.offset is not None:
            head.append(scales.offset.half()[..., None].contiguous().view(torch.uint8))
        if self.kind == "q8_0":
            body = [levels.to(torch.int8).view(torch.uint8).view(rows, blocks, BLOCK)]
        else:
            codes = (levels + self._zero).to(torch.uint8).view(rows, blocks, BLOCK)
            nibbles = (codes[..., :16] & 15) | ((codes[..., 16:] & 15) << 4)
            body = [_fifth_bits(codes), nibbles] if BITS[self.kind] == 5 else [nibbles]
        packed = torch.cat([*head, *body], -1).reshape(rows, -1)
        return Encoded({"blocks": packed}, torch.Size((rows, columns)), dtype)

    def unpack(self, encoded: Encoded) -> tuple[Tensor, Scales]:
        """Levels and scales out of the bytes."""
        rows, columns = encoded.shape
        packed = encoded.parts["blocks"].view(rows, columns // BLOCK, BLOCK_BYTES[self.kind])
        halves = 2 if self.kind == "q5_1" else 1
        scales = packed[..., : 2 * halves].contiguous().view(torch.float16).float()
        body = packed[..., 2 * halves :]
        if self.kind == "q8_0":
            levels = body.contiguous().view(torch.int8).float()
        else:
            nibbles = body[..., -16:]
            codes = torch.cat([nibbles & 15, nibbles >> 4], -1)
            if BITS[self.kind] == 5:
                codes = codes | (_spread_bits(body[..., :4]) << 4)
            levels = codes.float() - self._zero
        offset = scales[..., 1] if halves == 2 else None
        return levels.reshape(rows, columns), Scales(scales[..., 0], offset)

    def decode(self, encoded: Encoded) -> Tensor:
        """In the shape and type the weight had."""
        return value_of(*self.unpack(encoded)).to(encoded.dtype)


def _fifth_bits(codes: Tensor) -> Tensor:
    """Bit 4 of 32 codes [..., 32] as 4 bytes [..., 4], code 0 in the lowest bit."""
    weights = (1 << torch.arange(8, device=codes.device)).to(torch.uint8)
    return ((codes >> 4).view(*codes.shape[:-1], 4, 8) * weights).sum(-1, dtype=torch.int32).to(torch.uint8)


def _spread_bits(packed: Tensor) -> Tensor:
    """Inverse of `_fifth_bits`: [..., 4] bytes to [..., 32] bits."""
    bits = (packed[..., None] >> torch.arange(8, device=packed.device, dtype=torch.uint8)) & 1
    return bits.reshape(*packed.shape[:-1], BLOCK)
