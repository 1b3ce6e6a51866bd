"""Quantization-aware training on any grid, started from the calibrated solution, with the original as teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Optional

from compress.errors import UserError
from compress.grid_names import check_grids
from compress.losses.logits import Logits
from compress.quant.stage import Activations, Algorithm, CalibrationSettings, Scaling
from compress.stage import DENSE, QUANTIZED, TEACHER, TEXT, Context, Metrics
from compress.train.settings import Training

if TYPE_CHECKING:
    from compress.checkpoint import Checkpoint


class Trains(str, Enum):
    """What trains, in the order of cost."""

    scales = "scales"
    """Block scales, norms and biases; the codes stay."""
    lora = "lora"
    """These, and a low-rank change of the weights in front of the rounding."""
    weights = "weights"
    """These, and every weight, straight through the rounding."""


@dataclass
class QAT:
    """Calibrates, trains through the rounding against the original, and encodes on that grid.

    LLM-QAT (arXiv 2305.17888) with the latents, scales and start of `compress.quant.fake`. `train.rate` is that of the
    weights in units of the distance between levels.
    """

    grid: str = "nf4"
    """Of the linear layers, by name."""
    embedding: Optional[str] = None  # noqa: UP045 - OmegaConf reads this annotation on Python 3.10
    """Grid of embedding and head; they are put on it first, and the layers train around them."""
    activations: Activations = Activations.none
    algorithm: Algorithm = Algorithm.gptq
    """Where training starts."""
    scaling: Scaling = Scaling.none
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    trains: Trains = Trains.weights
    rank: int = 32
    """Of the change, for trains=lora."""
    scale_rate: float = 0.1
    """Rate of the block scales' factors, relative to train.rate."""
    norm_rate: float = 0.1
    """Rate of norms and biases, relative to train.rate."""
    train: Training = field(default_factory=Training)
    loss: Logits = field(default_factory=Logits)

    kind: ClassVar[str] = "qat"
    version: ClassVar[int] = 8
    needs: ClassVar[frozenset[str]] = frozenset({DENSE})
    gives: ClassVar[frozenset[str]] = frozenset({QUANTIZED})
    takes: ClassVar[frozenset[str]] = frozenset({DENSE})
    reads: ClassVar[frozenset[str]] = frozenset({TEXT, TEACHER})

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"quant.rank={self.rank} must be at least 1.")
        if self.activations is not Activations.none and self.grid != "int8":
            raise UserError(
                f"quant.activations={self.activations.value} is for grid=int8: layers on {self.grid} run with their "
                "inputs as they are.",
                "Leave it at none, or take +pipeline=qat_int8.",
            )
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

    @property
    def grid_name(self) -> str:
        """Of the linear layers."""
        return self.grid

    def check(self, config: object) -> None:
        """Refuse grids that do not exist, before anything is computed."""
        check_grids(self.grid, self.embedding)

    def run(self, checkpoint: Checkpoint, context: Context) -> tuple[Checkpoint, Metrics]:
        """Calibrate, train, write."""
        from compress.quant.learn import learn

        return learn(checkpoint, self, context)
