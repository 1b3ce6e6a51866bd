"""Quantization-aware training to INT8: the weights learn to be rounded, and the activations around them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from compress.losses.logits import Logits
from compress.stage import DENSE, QUANTIZED, TEACHER, TEXT, Context, Metrics
from compress.train.settings import Training

if TYPE_CHECKING:
    from compress.checkpoint import Checkpoint


@dataclass
class QATInt8:
    """Trains all weights through straight-through INT8 rounding against the original, then encodes them on that grid.

    Per-channel weights and dynamic per-token activations, as they will run (LLM-QAT, arXiv 2305.17888, sec. 3).
    """

    train: Training = field(default_factory=Training)
    loss: Logits = field(default_factory=Logits)

    kind: ClassVar[str] = "qat_int8"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset({DENSE})
    gives: ClassVar[frozenset[str]] = frozenset({QUANTIZED})
    takes: ClassVar[frozenset[str]] = frozenset({DENSE})
    reads: ClassVar[frozenset[str]] = frozenset({TEXT, TEACHER})

    def run(self, checkpoint: Checkpoint, context: Context) -> tuple[Checkpoint, Metrics]:
        """Train on the grid, then round for good."""
        from compress.arch import adapter_for
        from compress.arch.linears import linear_paths
        from compress.grids import Int8
        from compress.quant.encode import encode_checkpoint
        from compress.quant.fake import put_on_grid, take_off_grid
        from compress.train.fit import fit
        from compress.train.student import load_student, load_teacher, windows_for

        conv1d = adapter_for(checkpoint.config).modules.conv1d
        paths = linear_paths(checkpoint.config)
        windows = windows_for(self.train, context)
        student = load_student(checkpoint, context)
        put_on_grid(student, paths, conv1d)
        fitted = fit(student, load_teacher(context), self.loss, windows, self.train, context)
        take_off_grid(student, paths)
        # from the fp32 weights that trained: rounding them to bf16 first would move some to another code
        encoded, metrics = encode_checkpoint(checkpoint, Int8(), frozenset(), context, student.state_dict())
        return encoded, metrics | fitted.metrics()
