"""QLoRA: adapters on all linear layers of a frozen 4-bit base, trained against the original (arXiv 2305.14314)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from compress.errors import UserError
from compress.losses.logits import Logits
from compress.stage import ADAPTER, DENSE_PARENT, NF4_WEIGHTS, TEACHER, TEXT, Context, Metrics
from compress.train.settings import Training

if TYPE_CHECKING:
    from compress.checkpoint import Checkpoint


class Start(str, Enum):
    """Where the adapters start."""

    zero = "zero"
    residual = "residual"
    weighted = "weighted"


@dataclass
class QLoRA:
    """LoRA in bf16 beside NF4 weights; only the adapters train."""

    rank: int = 16
    """Rank of every adapter."""
    alpha: float = 16.0
    """Adapters are scaled by alpha / rank."""
    start: Start = Start.weighted
    """zero: as published; residual: from the error (LoftQ); weighted: as inputs see it (QERA)."""
    calibration_tokens: int = 8192
    """Tokens the inputs are measured on, for start=weighted."""
    train: Training = field(default_factory=lambda: Training(rate=3.5e-4))
    loss: Logits = field(default_factory=Logits)

    kind: ClassVar[str] = "qlora"
    version: ClassVar[int] = 5
    needs: ClassVar[frozenset[str]] = frozenset({NF4_WEIGHTS})
    gives: ClassVar[frozenset[str]] = frozenset({ADAPTER})
    takes: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset({TEXT, TEACHER, DENSE_PARENT})

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"recover.rank={self.rank} must be at least 1.")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"recover.alpha={self.alpha} must be above zero, and a number.")
        if self.calibration_tokens < 1:
            raise UserError(
                f"recover.calibration_tokens={self.calibration_tokens} must be at least 1.",
                "To leave the inputs out: recover.start=residual.",
            )

    def run(self, checkpoint: Checkpoint, context: Context) -> tuple[Checkpoint, Metrics]:
        """Start the adapters, train them, write them beside the base."""
        from compress.recover.adapters import add_adapters, start_from_residual, write_adapters
        from compress.runtime.loading import load_model
        from compress.train.fit import fit
        from compress.train.student import load_teacher, windows_for

        windows = windows_for(self.train, context)
        student = load_model(checkpoint.folder, device=context.fabric.device)
        adapted = add_adapters(student, checkpoint.config, self.rank, self.alpha)
        if self.start is not Start.zero:
            tokens = self.calibration_tokens if self.start is Start.weighted else 0
            start_from_residual(student, checkpoint, context, tokens)
        fitted = fit(student, load_teacher(self.train, context), self.loss, windows, self.train, context)
        return write_adapters(adapted, checkpoint, context), fitted.metrics()
