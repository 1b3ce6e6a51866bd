"""Post-training quantization: any grid by any algorithm."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Optional

from compress.errors import UserError
from compress.grid_names import GROUPS, check_grids, four_bit_name
from compress.stage import DENSE, NF4_WEIGHTS, QUANTIZED, TEXT, Context, Metrics

if TYPE_CHECKING:
    from compress.checkpoint import Checkpoint

LEAST_ENOUGH = 16384
"""Tokens that are always walked, if they are given."""


class FourBitKind(str, Enum):
    """The 4-bit code tables bitsandbytes has."""

    nf4 = "nf4"
    fp4 = "fp4"


class Algorithm(str, Enum):
    """How levels and scales are chosen."""

    rtn = "rtn"
    """Round to nearest, as the format's own quantizer does; needs no text."""
    search = "search"
    """Scales with the least error, weighted by the second moment of the inputs."""
    gptq = "gptq"
    """Searched scales, error feedback, then scales and levels in turns."""


class Scaling(str, Enum):
    """What is moved between layers before rounding, where the architecture lets it be undone exactly."""

    none = "none"
    awq = "awq"
    """Salient input channels up, so that weights keep them (arXiv 2306.00978)."""
    smooth = "smooth"
    """Loud input channels down, so that INT8 activations keep the others (SmoothQuant, arXiv 2211.10438), here or in a
    runtime that rounds inputs itself, as ExecuTorch's 8da4w does."""


class Activations(str, Enum):
    """What linear layers do with their inputs."""

    none = "none"
    int8_token = "int8_token"
    """8 bits, a scale for every token as it comes."""
    int8_static = "int8_static"
    """8 bits, one scale for each layer, from calibration text: for runtimes that cannot look at a token first."""


@dataclass
class CalibrationSettings:
    """The text that errors are measured on, and how they are spread."""

    tokens: int = 32768
    """Calibration tokens at most; text of the original's own counts among them."""
    per_column: int = 16
    """Tokens for each input of the widest layer that are enough, if they are more than 16,384: of a longer text the
    rest is left out (from 24,576 to 65,536 of them the KL stays and the time grows by half). 0 for no such limit."""
    length: int = 512
    """Tokens per window."""
    damping: float = 0.01
    """Added to the diagonal of the inputs' second moment, relative to its mean."""
    absorb: float = 0.5
    """Part of the drift from the original that every projection back into the stream makes up for: a layer has two."""
    ridge: float = 1.0
    """Pull towards the weights as they are while it does, relative to the size of the inputs."""
    rounds: int = 2
    """Turns of refitting scales and levels after error feedback."""
    first_token: float = 1.0
    """Weight of each window's first token among the others; its activations are massive."""
    output_tokens: int = 0
    """Tokens, 32768 say, to learn from what errors at a layer's outputs do to the answers: rows are then rounded
    together, and a twentieth to a twelfth of the KL goes, for a backward pass and twice the calibration. For gptq."""

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.length < 8:
            raise UserError(
                f"calibration.tokens={self.tokens} must be at least 1, calibration.length={self.length} at least 8."
            )
        for name, value in (("damping", self.damping), ("ridge", self.ridge)):
            if not 0 < value < math.inf:
                raise UserError(f"calibration.{name}={value} must be above zero, and a number.")
        if not 0 <= self.absorb <= 1:
            raise UserError(f"calibration.absorb={self.absorb} is a fraction: from 0 to 1.")
        if min(self.rounds, self.per_column, self.output_tokens) < 0 or not 0 <= self.first_token < math.inf:
            raise UserError(
                "calibration.rounds, .first_token, .per_column and .output_tokens must not be negative, nor infinite."
            )

    def enough(self, widest: int) -> int:
        """How many of the tokens are walked, where the widest layer has so many inputs."""
        return min(self.tokens, max(LEAST_ENOUGH, self.per_column * widest)) if self.per_column else self.tokens


@dataclass
class Quantizing(ABC):
    """What all stages that put weights on grids share."""

    embedding: Optional[str] = None  # noqa: UP045 - OmegaConf reads this annotation on Python 3.10
    """Grid of the embedding, and of the head (one tensor where they are tied); by default they stay dense."""
    algorithm: Algorithm = Algorithm.rtn
    """rtn, search or gptq."""
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)

    version: ClassVar[int] = 9
    needs: ClassVar[frozenset[str]] = frozenset({DENSE})
    takes: ClassVar[frozenset[str]] = frozenset({DENSE})
    scaling: ClassVar[Scaling] = Scaling.none
    activations: ClassVar[Activations] = Activations.none

    @property
    @abstractmethod
    def grid_names(self) -> tuple[str, ...]:
        """Those that the linear layers may lie on, of `compress.grid_names`."""

    def check(self, config: object) -> None:
        """Refuse grids that do not exist, and rows rounded together where they cannot be."""
        check_grids(*self.grid_names, self.embedding)
        if not self.calibration.output_tokens:
            return
        asked = f"stages.quant.calibration.output_tokens={self.calibration.output_tokens}"
        if self.algorithm is not Algorithm.gptq:
            raise UserError(
                f"{asked} is for algorithm=gptq: {self.algorithm.value} rounds every weight alone.",
                "Give stages.quant.algorithm=gptq, or no output_tokens.",
            )
        if self.scaling is not Scaling.none:
            raise UserError(
                f"{asked} is measured on the model as it is, and scaling={self.scaling.value} changes the outputs of "
                "its layers.",
                "Give stages.quant.scaling=none, or no output_tokens.",
            )


@dataclass
class PostTraining(Quantizing):
    """Without training: what `algorithm` finds."""

    scaling: Scaling = Scaling.none  # type: ignore[misc]
    """none, awq or smooth."""

    @property
    def gives(self) -> frozenset[str]:
        """Nothing that other stages build on, by default."""
        return frozenset({QUANTIZED})

    @property
    def reads(self) -> frozenset[str]:
        """Rounding to nearest reads no text."""
        free = self.algorithm is Algorithm.rtn and self.scaling is Scaling.none
        free = free and self.activations is not Activations.int8_static
        return frozenset() if free else frozenset({TEXT})


@dataclass
class OneGrid(PostTraining):
    """All linear layers on one grid."""

    @property
    @abstractmethod
    def grid_name(self) -> str:
        """Of `compress.grid_names`."""

    @property
    def grid_names(self) -> tuple[str, ...]:
        """The one."""
        return (self.grid_name,)

    def run(self, checkpoint: Checkpoint, context: Context) -> tuple[Checkpoint, Metrics]:
        """Choose codes, then write them tensor by tensor."""
        from compress.quant.run import post_training

        return post_training(checkpoint, self, context)


@dataclass
class NF4(OneGrid):
    """Linear layers to 4 bits in blocks (QLoRA, arXiv 2305.14314)."""

    code: FourBitKind = FourBitKind.nf4
    """nf4, quantiles of a normal distribution, or fp4."""
    block: int = 64
    """Weights that share a scale: 32, 64 or 128."""
    double_quant: bool = True
    """Quantize the scales too, to 8 bits in blocks of 256."""

    kind: ClassVar[str] = "nf4"

    @property
    def gives(self) -> frozenset[str]:
        """Adapters sit on bitsandbytes' layers; with its embedding on a grid too the model lies in our own layout."""
        return frozenset({QUANTIZED} if self.embedding is not None else {QUANTIZED, NF4_WEIGHTS})

    def __post_init__(self) -> None:
        if self.block not in GROUPS:
            raise UserError(f"quant.block={self.block} is not a block size of this grid.", f"Give one of {GROUPS}.")

    @property
    def grid_name(self) -> str:
        """As its fields say."""
        return four_bit_name(self.code.value, self.block, self.double_quant)


@dataclass
class INT8(OneGrid):
    """Linear layers to 8 bits per output channel, run with 8-bit activations."""

    activations: Activations = Activations.int8_token  # type: ignore[misc]
    """int8_token, int8_static, or none for weights only."""

    kind: ClassVar[str] = "int8"

    @property
    def grid_name(self) -> str:
        """Per channel."""
        return "int8"


@dataclass
class OnGrid(OneGrid):
    """Linear layers on any grid by its name, activations as they are."""

    grid: str = "int4_g64"
    """int8, int4_g32|64|128[_asym], int3_..., q8_0, q5_1, q5_0, q4_0, nf4[_b32|64|128[_single]], fp4..."""

    kind: ClassVar[str] = "grid"

    @property
    def grid_name(self) -> str:
        """As given."""
        return self.grid
