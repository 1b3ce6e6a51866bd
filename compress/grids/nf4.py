"""NF4 and FP4 in blocks, optionally with double quantization of the scales (QLoRA, arXiv 2305.14314, sec. 3).

The arithmetic is `compress_kernels`', bit-exact with bitsandbytes. A grid's scale is a block's effective absmax, its
levels the table's values in -1..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from compress_kernels import (
    FP4_CODE,
    NF4_CODE,
    Blockwise4bit,
    dequantize_4bit,
    effective_absmax,
    quantize_4bit,
    quantize_scales,
)
from torch import Tensor

from compress.grid_names import four_bit_name
from compress.grids.base import Encoded, Scales

NESTED_BLOCK = 256


@dataclass(frozen=True)
class FourBit:
    """A 4-bit code table scaled by the largest magnitude of every block of `block` weights along the flattened rows."""

    kind: Literal["nf4", "fp4"] = "nf4"
    block: int = 64
    double_quant: bool = True

    @property
    def name(self) -> str:
        """Such as "nf4", "fp4_b128" or "nf4_b64_single"."""
        return four_bit_name(self.kind, self.block, self.double_quant)

    @property
    def table(self) -> Tensor:
        """Value of every code, fp32 [16]."""
        return NF4_CODE if self.kind == "nf4" else FP4_CODE

    @property
    def levels(self) -> Tensor:
        """The table's values, ascending; FP4 has its zero twice."""
        return self.table.sort(stable=True).values

    def fits(self, shape: Sequence[int]) -> bool:
        """bitsandbytes' 4-bit CPU kernels take whole blocks along a row, and 32 rows at a time."""
        return shape[1] % self.block == 0 and shape[0] % 32 == 0

    def start(self, weight: Tensor) -> Scales:
        """The largest magnitude of every block, quantized too if asked for."""
        absmax = weight.detach().float().reshape(weight.shape[0], -1, self.block).abs().amax(-1)
        return self.settle(absmax, None)

    def settle(self, scale: Tensor, offset: Tensor | None) -> Scales:
        """The effective scales after double quantization: rows one after the other, 256 to a nested block."""
        absmax = scale.float().contiguous().flatten()
        if not self.double_quant:
            return Scales(absmax.view_as(scale), stored={"absmax": absmax})
        codes, nested, mean = quantize_scales(absmax)
        stored = {"absmax": codes, "nested_absmax": nested, "offset": mean}
        view = Blockwise4bit(codes, codes, nested, mean, self.block, self.kind)
        return Scales(effective_absmax(view).view_as(scale), stored=stored)

    def encode(self, weight: Tensor) -> Encoded:
        """Codes two to a byte, and absmax (uint8 with nested_absmax and offset if double quantized)."""
        q = quantize_4bit(weight, kind=self.kind, block=self.block, double_quant=self.double_quant)
        parts = {"codes": q.codes, "absmax": q.absmax}
        if q.nested_absmax is not None and q.offset is not None:
            parts |= {"nested_absmax": q.nested_absmax, "offset": q.offset}
        return Encoded(parts, weight.shape, weight.dtype)

    def pack(self, levels: Tensor, scales: Scales, dtype: torch.dtype) -> Encoded:
        """The same parts for levels and scales of one's own; the first weight of a pair is in the high nibble."""
        order = torch.argsort(self.table, stable=True).to(levels.device)
        # the nearest: levels may have been kept in fp16 meanwhile, where they are not the table's values to the bit
        bounds = ((self.levels[1:] + self.levels[:-1]) / 2).to(levels.device)
        position = torch.bucketize(levels.float().contiguous(), bounds)
        codes = order[position].to(torch.uint8).view(-1, 2)
        return Encoded({"codes": codes[:, 0] << 4 | codes[:, 1], **scales.stored}, levels.shape, dtype)

    def unpack(self, encoded: Encoded) -> tuple[Tensor, Scales]:
        """Levels and effective scales."""
        packed = encoded.parts["codes"]
        codes = torch.stack([packed >> 4, packed & 15], 1).view(encoded.shape)
        stored = {name: part for name, part in encoded.parts.items() if name != "codes"}
        scale = effective_absmax(self.blockwise(encoded)).view(encoded.shape[0], -1)
        return self.table.to(packed.device)[codes.long()], Scales(scale, stored=stored)

    def decode(self, encoded: Encoded) -> Tensor:
        """In the shape and type the weight had."""
        return dequantize_4bit(self.blockwise(encoded), encoded.shape, encoded.dtype)

    def blockwise(self, encoded: Encoded) -> Blockwise4bit:
        """The kernels' view of the same parts."""
        parts = encoded.parts
        return Blockwise4bit(
            codes=parts["codes"],
            absmax=parts["absmax"],
            nested_absmax=parts.get("nested_absmax"),
            offset=parts.get("offset"),
            block=self.block,
            kind=self.kind,
        )

    def bits(self) -> float:
        """4 + 32 / 64 = 4.5 plain, 4 + 8 / 64 + 32 / (64 * 256) = 4.127 with double quantization at block 64."""
        scale = 8 + 32 / NESTED_BLOCK if self.double_quant else 32
        return 4 + scale / self.block
