"""Distillation of a dense student against the original model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from compress.losses.logits import Logits
from compress.stage import DENSE, TEACHER, TEXT, Context, Metrics
from compress.train.settings import Schedule, Training

if TYPE_CHECKING:
    from compress.checkpoint import Checkpoint


@dataclass
class Distill:
    """Trains the layers of the student to give the teacher's distribution (Minitron, arXiv 2407.14679, sec. 4)."""

    embeddings: bool = False
    """Train embedding and head too. Left as they are, a step is a tenth faster, and pruning has not touched them."""
    train: Training = field(default_factory=lambda: Training(rate=2e-4, schedule=Schedule.linear))
    loss: Logits = field(default_factory=Logits)

    kind: ClassVar[str] = "distill"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset({DENSE})
    gives: ClassVar[frozenset[str]] = frozenset()
    takes: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset({TEXT, TEACHER})

    def run(self, checkpoint: Checkpoint, context: Context) -> tuple[Checkpoint, Metrics]:
        """Train, then write the student in the types it had."""
        from compress.train.fit import fit
        from compress.train.student import load_student, load_teacher, windows_for, write_dense

        if checkpoint.folder == context.original.folder:
            context.progress.say(
                "student and teacher are the same model, so there is nothing to learn: "
                "prune first, or name another teacher with +model@teacher=hf teacher.path=DIR_OR_ID"
            )
        windows = windows_for(self.train, context)
        student = load_student(checkpoint, context)
        if not self.embeddings:
            student.get_input_embeddings().requires_grad_(False)
            student.get_output_embeddings().requires_grad_(False)
        fitted = fit(student, load_teacher(context), self.loss, windows, self.train, context)
        return write_dense(student, checkpoint, context), fitted.metrics()
