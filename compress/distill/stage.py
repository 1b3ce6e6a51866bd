"""Distillation of a dense student against the original model."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from compress.arch import adapter_for
from compress.checkpoint import PLAN
from compress.errors import UserError
from compress.losses.logits import DIVERGENCES
from compress.losses.terms import Terms
from compress.stage import DENSE, TEACHER, TEXT, Context, Metrics
from compress.train.settings import Keep, Schedule, Strategy, Training

if TYPE_CHECKING:
    from compress.checkpoint import Checkpoint
    from compress.data.windows import Windows
    from compress.losses.matching import Kept


class TeacherStore(str, Enum):
    """Whether the teacher's logits are kept, and in which form."""

    none = "none"
    topk = "topk"
    sampled = "sampled"


@dataclass
class Distill:
    """Trains the layers of the student to give the teacher's distribution (Minitron, arXiv 2407.14679, sec. 4)."""

    embeddings: bool = False
    """Train embedding and head too. Left as they are, a step is a tenth faster, and only a cut of residual channels
    (stages.prune.hidden) has touched them."""
    teacher_store: TeacherStore = TeacherStore.none
    """none: the teacher computes along; topk, sampled: from a store written once for all students of a sweep."""
    teacher_k: int = 64
    """Tokens kept of every position, most likely ones (topk) or draws (sampled)."""
    teacher_correction_tokens: int = 0
    """Tokens of the text that the teacher itself is trained on before it teaches; 0 leaves it as it is."""
    teacher_correction_rate: float = 2e-5
    """Peak rate of that training."""
    train: Training = field(default_factory=lambda: Training(rate=1e-4, schedule=Schedule.linear))
    loss: Terms = field(default_factory=Terms)

    kind: ClassVar[str] = "distill"
    version: ClassVar[int] = 5
    needs: ClassVar[frozenset[str]] = frozenset({DENSE})
    gives: ClassVar[frozenset[str]] = frozenset()
    takes: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset({TEXT, TEACHER})

    def __post_init__(self) -> None:
        if self.teacher_k < 1:
            raise UserError(f"distill.teacher_k={self.teacher_k} must be at least 1.")
        if self.teacher_correction_tokens < 0:
            raise UserError(f"distill.teacher_correction_tokens={self.teacher_correction_tokens} must not be negative.")
        if not 0 < self.teacher_correction_rate < math.inf:
            raise UserError(
                f"distill.teacher_correction_rate={self.teacher_correction_rate} must be above zero, and a number."
            )
        unusual = [f"loss.{name}" for name in ("hidden", "attention") if getattr(self.loss, name)]
        unusual += [f"teacher_store={self.teacher_store.value}"] * (self.teacher_store is not TeacherStore.none)
        if self.train.devices > 1 and unusual:
            raise UserError(
                f"distill.{unusual[0]} runs in one process, and train.devices={self.train.devices}.",
                "Leave one of them out.",
            )
        if self.teacher_store is TeacherStore.none:
            return
        if self.train.validate_every:
            raise UserError(
                f"a store of logits (teacher_store={self.teacher_store.value}) holds none of the held-out text, and "
                f"train.validate_every={self.train.validate_every} measures against the teacher there.",
                "Give train.validate_every=0, or teacher_store=none.",
            )
        if self.loss.matching:
            raise UserError(
                f"a store of logits (teacher_store={self.teacher_store.value}) holds no states inside the teacher, and "
                f"loss.hidden={self.loss.hidden}, loss.attention={self.loss.attention} match them.",
                "Set both to 0, or teacher_store=none.",
            )
        others = [name for name in DIVERGENCES[1:] if getattr(self.loss, name)]
        if self.teacher_store is TeacherStore.sampled and others:
            raise UserError(
                f"draws estimate the forward KL only, and {', '.join(f'loss.{name}' for name in others)} is asked for.",
                "Give teacher_store=topk, or loss.kl alone.",
            )

    def check(self, config: Any) -> None:
        """Refuse what the model's vocabulary cannot give, before anything is computed."""
        if self.teacher_store is not TeacherStore.none and self.teacher_k >= config.vocab_size:
            raise UserError(
                f"distill.teacher_k={self.teacher_k}: the vocabulary has {config.vocab_size} tokens in all.",
                "Give fewer, 64 say, or teacher_store=none.",
            )

    def run(self, checkpoint: Checkpoint, context: Context) -> tuple[Checkpoint, Metrics]:
        """Train, then write the student in the types it had."""
        from compress.losses.matching import Matched
        from compress.runtime.loading import load_original
        from compress.train.fit import fit
        from compress.train.student import load_student, place_for, windows_for, write_dense

        if checkpoint.folder == context.original.folder:
            context.progress.say(
                "student and teacher are the same model, so there is nothing to learn: "
                "prune first, or name another teacher with +model@teacher=hf teacher.path=DIR_OR_ID"
            )
        windows = windows_for(self.train, context)
        source = self._teacher(context)
        teacher = None if self.teacher_store is TeacherStore.none else self._stored(source, windows, context)
        student = load_student(checkpoint, self.train, context)
        if not self.embeddings:
            student.get_input_embeddings().requires_grad_(False)
            student.get_output_embeddings().requires_grad_(False)
        if teacher is None:
            teacher = load_original(source, place_for(self.train, context)).requires_grad_(False)
        if not self.loss.matching:
            fitted = fit(student, teacher, self.loss, windows, self.train, context)
        else:
            matched = Matched(self.loss, student, teacher, kept_of(checkpoint, context.original))
            fitted = fit(student, teacher, matched, windows, self.train, context)
            matched.close()
        return write_dense(student, checkpoint, context), fitted.metrics()

    def _teacher(self, context: Context) -> Checkpoint:
        """The original, corrected if that is wanted."""
        from compress.distill.correction import corrected_teacher

        if not self.teacher_correction_tokens:
            return context.original
        settings = replace(
            self.train,
            tokens=self.teacher_correction_tokens,
            rate=self.teacher_correction_rate,
            own_share=0.0,
            # there is no teacher to measure against, and one process is enough for what is short
            validate_every=0,
            keep=Keep.last,
            patience=0,
            devices=1,
            strategy=Strategy.auto,
        )
        return corrected_teacher(settings, context)

    def _stored(self, teacher: Checkpoint, windows: Windows, context: Context) -> Any:
        from compress.distill.teacher_store import Kept, stored_teacher
        from compress.train.fit import lightning_precision

        bf16 = lightning_precision(self.train.precision, context.fabric.device) == "bf16-mixed"
        sampled = self.teacher_store is TeacherStore.sampled
        kept = Kept(self.teacher_k, sampled, self.loss.temperature, bf16, context.seed if sampled else 0)
        return stored_teacher(teacher, windows, kept, context)


def kept_of(student: Checkpoint, teacher: Checkpoint) -> Kept | None:
    """What the pruning plan beside the student says, if it is a plan of this teacher."""
    from compress.losses.matching import Kept

    file = student.folder / PLAN
    if not file.is_file():
        return None
    plan = json.loads(file.read_text(encoding="utf-8"))
    theirs, own = (adapter_for(checkpoint.config).shape(checkpoint.config) for checkpoint in (teacher, student))
    # a student pruned twice has a plan of something between the two; one of an artifact may be of another teacher
    of_this = len(plan["mlp"]) == theirs.layers and max(plan["hidden"], default=0) < theirs.hidden
    if not of_this or (len(plan["layers"]), len(plan["hidden"])) != (own.layers, own.hidden):
        return None
    return Kept(tuple(plan["layers"]), tuple(plan["hidden"]))
