"""Mixed precision: every tensor on the grid that its share of a byte budget is best spent on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Optional

from compress.errors import UserError
from compress.quant.qat import LearnedThroughRounding
from compress.quant.stage import Algorithm, PostTraining, Quantizing, Scaling
from compress.stage import TEXT, Context, Metrics

if TYPE_CHECKING:
    from compress.checkpoint import Checkpoint
    from compress.grids import Grid

DEFAULT = ("q4_0", "q5_0", "q5_1", "q8_0")
"""What a GGUF file can say, so that llama.cpp runs the result."""


@dataclass
class Budget(Quantizing):
    """What may be spent on the grids of all tensors, and which there are."""

    bits: float = 5.0
    """Budget: average stored bits of all quantized weights, scales included."""
    megabytes: Optional[float] = None  # noqa: UP045 - OmegaConf reads this annotation on Python 3.10
    """Budget of the whole weight file instead, what stays dense included; in 10^6 bytes."""
    candidates: list[str] = field(default_factory=lambda: list(DEFAULT))
    """Grids to choose from, by name. `embedding` is one of them too, unless it is given."""

    def __post_init__(self) -> None:
        if not self.candidates:
            raise UserError("quant.candidates is empty.", f"Give grids to choose from, such as [{', '.join(DEFAULT)}].")
        for name, value in (("bits", self.bits), ("megabytes", self.megabytes)):
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"quant.{name}={value} must be above zero, and a number.")

    @property
    def grid_names(self) -> tuple[str, ...]:
        """All there is to choose from."""
        return tuple(self.candidates)


@dataclass
class Mixed(PostTraining, Budget):
    """Measures what every linear layer and the embedding lose on every grid, spends the budget by integer programming
    (`compress.quant.allocation`), then quantizes with calibration as the other stages do."""

    algorithm: Algorithm = Algorithm.gptq

    kind: ClassVar[str] = "mixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scaling is not Scaling.none:
            raise UserError(
                f"quant.scaling={self.scaling.value} is not for mixed grids: what a tensor loses is measured before.",
                "Leave it at none.",
            )

    @property
    def reads(self) -> frozenset[str]:
        """Sensitivity is measured on text, whatever the algorithm."""
        return frozenset({TEXT})

    def run(self, checkpoint: Checkpoint, context: Context) -> tuple[Checkpoint, Metrics]:
        """Measure, allocate, calibrate, write."""
        from compress.quant.mixing import mixed

        return mixed(checkpoint, self, context)


@dataclass
class MixedQAT(LearnedThroughRounding, Budget):
    """The same allocation, then calibrated and trained through the rounding of every tensor's own grid."""

    kind: ClassVar[str] = "qat_mixed"

    def __post_init__(self) -> None:
        Budget.__post_init__(self)
        LearnedThroughRounding.__post_init__(self)

    def placement(self, checkpoint: Checkpoint, context: Context) -> tuple[dict[str, Grid], Metrics]:
        """What every tensor's share of the budget is best spent on."""
        from compress.quant.mixing import allocated

        return allocated(checkpoint, self, context)
