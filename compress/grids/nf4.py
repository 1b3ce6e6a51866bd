"""NF4 and FP4 in blocks, optionally with double quantization of the scales (QLoRA, arXiv 2305.14314, sec. 3).

The arithmetic is `compress_kernels`', bit-exact with bitsandbytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compress_kernels import Blockwise4bit, dequantize_4bit, quantize_4bit
from torch import Tensor

from compress.grids.base import Encoded

NESTED_BLOCK = 256


@dataclass(frozen=True)
class FourBit:
    """A 4-bit code table scaled by the largest magnitude of every block of `block` weights along the flattened rows."""

    kind: Literal["nf4", "fp4"] = "nf4"
    block: int = 64
    double_quant: bool = True

    def encode(self, weight: Tensor) -> Encoded:
        """Codes two to a byte, and absmax (uint8 with nested_absmax and offset if double quantized)."""
        q = quantize_4bit(weight, kind=self.kind, block=self.block, double_quant=self.double_quant)
        parts = {"codes": q.codes, "absmax": q.absmax}
        if q.nested_absmax is not None and q.offset is not None:
            parts |= {"nested_absmax": q.nested_absmax, "offset": q.offset}
        return Encoded(parts, weight.shape, weight.dtype)

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
