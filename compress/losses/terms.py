"""The terms of healing: those on logits, and matching the inside of the teacher (compress.losses.matching)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from compress.losses.logits import Logits


@dataclass
class Terms(Logits):
    """Weights of the terms."""

    hidden: float = 0.0
    """Weight of the error of the residual stream after the layers, relative to the teacher's."""
    attention: float = 0.0
    """Weight of the error of what the layers' attention reads, relative to the teacher's."""

    weighted: ClassVar[tuple[str, ...]] = (*Logits.weighted, "hidden", "attention")

    @property
    def matching(self) -> bool:
        """Whether states inside the models count."""
        return self.hidden > 0 or self.attention > 0


def comparable(loss: float) -> float:
    """What is no number is worse than any: NaN compares with nothing, and would stay the best for ever."""
    return loss if math.isfinite(loss) else math.inf
