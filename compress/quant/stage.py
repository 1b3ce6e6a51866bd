"""Post-training quantization: round to nearest on a grid, without data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from compress.errors import UserError
from compress.stage import DENSE, NF4_WEIGHTS, QUANTIZED, Context, Metrics

if TYPE_CHECKING:
    from compress.checkpoint import Checkpoint

BLOCKS = (32, 64, 128)


class FourBitKind(str, Enum):
    """The 4-bit code tables bitsandbytes has."""

    nf4 = "nf4"
    fp4 = "fp4"


@dataclass
class NF4:
    """Linear layers to 4 bits in blocks (QLoRA, arXiv 2305.14314)."""

    code: FourBitKind = FourBitKind.nf4
    """nf4, quantiles of a normal distribution, or fp4."""
    block: int = 64
    """Weights that share a scale: 32, 64 or 128."""
    double_quant: bool = True
    """Quantize the scales too, to 8 bits in blocks of 256."""

    kind: ClassVar[str] = "nf4"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset({DENSE})
    gives: ClassVar[frozenset[str]] = frozenset({QUANTIZED, NF4_WEIGHTS})
    takes: ClassVar[frozenset[str]] = frozenset({DENSE})
    reads: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if self.block not in BLOCKS:
            raise UserError(f"quant.block={self.block} is not a block size of this grid.", f"Give one of {BLOCKS}.")

    def run(self, checkpoint: Checkpoint, context: Context) -> tuple[Checkpoint, Metrics]:
        """Encode every linear layer."""
        from compress.grids import FourBit
        from compress.quant.encode import encode_checkpoint

        grid = FourBit(self.code.value, self.block, self.double_quant)
        return encode_checkpoint(checkpoint, grid, frozenset({NF4_WEIGHTS}), context)


@dataclass
class INT8:
    """Linear layers to 8 bits per output channel, run with 8-bit activations per token."""

    kind: ClassVar[str] = "int8"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset({DENSE})
    gives: ClassVar[frozenset[str]] = frozenset({QUANTIZED})
    takes: ClassVar[frozenset[str]] = frozenset({DENSE})
    reads: ClassVar[frozenset[str]] = frozenset()

    def run(self, checkpoint: Checkpoint, context: Context) -> tuple[Checkpoint, Metrics]:
        """Encode every linear layer."""
        from compress.grids import Int8
        from compress.quant.encode import encode_checkpoint

        return encode_checkpoint(checkpoint, Int8(), frozenset(), context)
