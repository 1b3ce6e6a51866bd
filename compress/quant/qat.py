"""Quantization-aware training on any grid, started from the calibrated solution, with the original as teacher."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from compress.errors import UserError
from compress.losses.logits import Logits
from compress.quant.stage import Activations, Algorithm, Quantizing, Scaling
from compress.stage import QUANTIZED, TEACHER, TEXT, Context, Metrics
from compress.train.settings import Training

if TYPE_CHECKING:
    from compress.checkpoint import Checkpoint
    from compress.grids import Grid


class Trains(str, Enum):
    """What trains, in the order of cost."""

    scales = "scales"
    """Block scales, norms and biases; the codes stay."""
    lora = "lora"
    """These, and a low-rank change of the weights in front of the rounding."""
    weights = "weights"
    """These, and every weight, straight through the rounding."""


@dataclass
class LearnedThroughRounding(Quantizing):
    """Calibrates, trains through the rounding against the original, and encodes on the grids trained on.

    LLM-QAT (arXiv 2305.17888) with the latents, scales and start of `compress.quant.fake`. `train.rate` is that of the
    weights in units of the distance between levels.
    """

    algorithm: Algorithm = Algorithm.gptq
    """Where training starts. An embedding on a grid is put there first, and the layers train around it."""
    trains: Trains = Trains.weights
    rank: int = 32
    """Of the change, for trains=lora."""
    scale_rate: float = 0.1
    """Rate of the block scales' factors, relative to train.rate."""
    norm_rate: float = 0.1
    """Rate of norms and biases, relative to train.rate."""
    train: Training = field(default_factory=Training)
    loss: Logits = field(default_factory=Logits)

    version: ClassVar[int] = 12
    gives: ClassVar[frozenset[str]] = frozenset({QUANTIZED})
    reads: ClassVar[frozenset[str]] = frozenset({TEXT, TEACHER})

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"quant.rank={self.rank} must be at least 1.")
        for name in ("scale_rate", "norm_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(
                    f"quant.{name}={getattr(self, name)} must not be negative, and a number; 0 holds them still."
                )
        if self.trains is Trains.scales and not self.scale_rate and not self.norm_rate:
            raise UserError(
                "quant.trains=scales with quant.scale_rate=0 and quant.norm_rate=0 trains nothing.",
                "Leave one of the rates as it is, or take +pipeline=nf4_gptq or another that calibrates only.",
            )

    @abstractmethod
    def placement(self, checkpoint: Checkpoint, context: Context) -> tuple[dict[str, Grid], Metrics]:
        """Module path -> grid of every weight on one, and what was measured to choose it."""

    def run(self, checkpoint: Checkpoint, context: Context) -> tuple[Checkpoint, Metrics]:
        """Calibrate, train, write."""
        from compress.quant.learn import learn

        return learn(checkpoint, self, context)


@dataclass
class QAT(LearnedThroughRounding):
    """All linear layers on one grid."""

    grid: str = "nf4"
    """Of the linear layers, by name."""
    activations: Activations = Activations.none  # type: ignore[misc]
    scaling: Scaling = Scaling.none  # type: ignore[misc]

    kind: ClassVar[str] = "qat"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activations is not Activations.none and self.grid != "int8":
            raise UserError(
                f"quant.activations={self.activations.value} is for grid=int8: layers on {self.grid} run with their "
                "inputs as they are.",
                "Leave it at none, or take +pipeline=qat_int8.",
            )

    @property
    def grid_name(self) -> str:
        """Of the linear layers."""
        return self.grid

    @property
    def grid_names(self) -> tuple[str, ...]:
        """The one."""
        return (self.grid,)

    def placement(self, checkpoint: Checkpoint, context: Context) -> tuple[dict[str, Grid], Metrics]:
        """The same grid for all."""
        from compress.grids import grid_named
        from compress.quant.encode import linear_grids
        from compress.quant.run import outer_grids

        del context
        grids = linear_grids(checkpoint.config, grid_named(self.grid))
        return grids | (outer_grids(checkpoint, grid_named(self.embedding)) if self.embedding else {}), {}
