"""Everything that can be refused before work starts: places to write to, memory, disk, device."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.arch import adapter_for
from compress.errors import UserError
from compress.hardware import cores_of_quota, fast_cores, native_bf16
from compress.stage import TEXT, Stage
from compress.words import check_same_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from compress.checkpoint import Checkpoint
    from compress.data import Corpus
    from compress.stage import Progress

GIB = 1 << 30


def check_writable(folder: Path, setting: str) -> None:
    """Make `folder` and try to write into it.

    Raises:
        UserError: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}.", f"Choose another folder: {setting}."
        ) from error


def existing(folder: Path) -> Path:
    """The nearest folder above that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder


def check_disk(folder: Path, needed: int, setting: str) -> None:
    """Refuse a run whose results do not fit.

    Raises:
        UserError: naming what is free and what is needed.
    """
    free = shutil.disk_usage(existing(folder)).free
    if free < needed:
        raise UserError(
            f"{folder} has {free / GIB:.1f} GiB free, and this run needs about {needed / GIB:.1f} GiB.",
            f"Make room, or choose another disk: {setting}.",
        )


def trainings(stages: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What trains, by the name of its stage: a stage with settings `train`, or the healing inside one."""
    parts = [(name, part) for name, stage in stages.items() for part in (stage, getattr(stage, "heal", None))]
    return [(name, part) for name, part in parts if getattr(part, "train", None) is not None]


def say_what_is_emulated(stages: Mapping[str, Any], device: str, progress: Progress) -> None:
    """Say which training will take a hundred times as long for the type that was asked for."""
    for name, part in trainings(stages):
        if device == "cpu" and part.train.precision.value == "bf16" and not native_bf16():
            progress.say(
                f"{name}: this processor emulates train.precision=bf16, a hundred times slower than precision=auto"
            )


def disk_needed(stages: Mapping[str, Stage], parameters: int) -> int:
    """Bytes for stage results, for those inside a stage, and for the progress of the largest training twice (old and
    new); what several processes are handed is the student in fp32 and the teacher, at most in fp32 too."""
    inside = sum(getattr(s, "steps", 1) + 2 for s in stages.values() if getattr(s, "heal", None) is not None)
    inside += sum(bool(getattr(stage, "teacher_correction_tokens", 0)) for stage in stages.values())
    results = 2 * parameters * (len(stages) + 1 + inside)
    several = any(part.train.devices > 1 for _, part in trainings(stages))
    return results + (2 * 12 * parameters if trainings(stages) else 0) + (8 * parameters if several else 0) + GIB // 4


def check_shapes(stages: Mapping[str, Any], config: Any, teacher: Any = None) -> None:
    """Let every stage say whether it can work on a model of the shape that the stages before it leave.

    Args:
        stages: in order.
        config: of the model the chain begins with.
        teacher: config of the model it is compared with; by default the same.

    Raises:
        UserError: one cannot.
    """
    _check_shapes(list(stages.items()), config, config, teacher or config)


def _check_shapes(stages: Sequence[tuple[str, Any]], config: Any, first: Any, teacher: Any) -> None:
    for index, (name, stage) in enumerate(stages):
        parts: list[Any] = [stage, getattr(stage, "heal", None)]
        for part in parts:
            if hasattr(part, "check"):
                part.check(config)
        if hasattr(stage, "check_teacher"):
            stage.check_teacher(first, teacher)
        if hasattr(stage, "possible"):
            # nobody knows yet which one wins: the stages after the search must be able to go on from any
            for candidate, (_, widths) in stage.possible(config)[0].items():
                try:
                    _check_shapes(stages[index + 1 :], adapter_for(config).narrowed(config, widths), first, teacher)
                except UserError as error:
                    leave_out = f"'~stages.{name}.candidates.{candidate}' leaves it out of the search."
                    raise UserError(f"If {candidate} wins: {error.problem}", f"{error.hint}\n{leave_out}") from error
            return
        if hasattr(stage, "widths"):
            config = adapter_for(config).narrowed(config, stage.widths(config))


def check_text(stages: Mapping[str, Any], corpus: Corpus, teacher: Checkpoint) -> None:
    """Refuse a text that a training, or a calibration, cannot take a single window from.

    Args:
        stages: in order.
        corpus: the text.
        teacher: whose tokens and positions count.

    Raises:
        UserError: it is too short.
    """
    from compress.data.windows import CALIBRATION_WINDOW, joined_windows, readable, training_windows

    tokenizer = teacher.tokenizer()
    for _, part in trainings(stages):
        length = readable(part.train.length, teacher.config)
        training_windows(corpus.train, tokenizer, length=length, tokens=1, seed=0, setting="train.length")
    for name, stage in stages.items():
        for part in (stage, getattr(stage, "prune", None), getattr(stage, "compensate", None)):
            if TEXT not in stage.reads or not (hasattr(part, "calibration") or hasattr(part, "calibration_tokens")):
                continue
            length = readable(getattr(getattr(part, "calibration", None), "length", CALIBRATION_WINDOW), teacher.config)
            own = f"stages.{name}.calibration.length"
            setting = own if hasattr(part, "calibration") else f"the calibration window of stage {name!r}"
            divide = getattr(stage, "divide", lambda documents: (documents,))
            for documents in divide(corpus.calibration):
                joined_windows(documents, tokenizer, length=length, tokens=1, setting=setting, text="calibration")


def check_validation(stages: Mapping[str, Any], corpus: Corpus, teacher: Checkpoint, measured: int) -> None:
    """Refuse to choose weights on the text that results are reported on.

    Args:
        stages: in order.
        corpus: the text.
        teacher: whose tokens and positions count.
        measured: tokens at the beginning of the held-out text that every stage is measured on.

    Raises:
        UserError: too little held-out text is left for a validation.
    """
    from compress.data.windows import joined_windows, readable

    for _, part in trainings(stages):
        settings = part.train
        if not settings.validate_every:
            continue
        length = readable(settings.length, teacher.config)
        wanted = measured + max(settings.validate_tokens, settings.devices * length) // length * length
        found = joined_windows(corpus.heldout, teacher.tokenizer(), length=length, tokens=wanted).numel()
        if found < wanted // length * length:
            raise UserError(
                f"the held-out text has about {found:,} tokens: results are measured on {measured:,} of them, and "
                f"train.validate_tokens={settings.validate_tokens} more would have to be the same.",
                "Give more held-out text (data.heldout_path=FILE), or a smaller evaluate.tokens or validate_tokens.",
            )


def check_teacher(config: Any, student: Checkpoint, teacher: Checkpoint) -> None:
    """Refuse a teacher of other words, or of more positions than the windows may have.

    Args:
        config: of the run.
        student: the model the chain begins with.
        teacher: the model it is compared with.

    Raises:
        UserError: naming what to type instead.
    """
    if config.teacher is not None:
        check_same_words(student, teacher)
        check_positions(config, student, teacher)


def check_positions(config: Any, student: Checkpoint, teacher: Checkpoint) -> None:
    """Refuse windows that a student with fewer positions than its teacher cannot read.

    Args:
        config: of the run, or anything with its `evaluate` and `stages`.
        student: the model the chain begins with.
        teacher: the model it is compared with.

    Raises:
        UserError: naming the setting.
    """
    from compress.data.windows import readable

    lengths = {"evaluate.window": config.evaluate.window} if config.evaluate.measure else {}
    for name, part in trainings(config.stages):
        lengths[f"stages.{name}.train.length"] = part.train.length
    for name, stage in config.stages.items():
        if TEXT in stage.reads and hasattr(stage, "calibration"):
            lengths[f"stages.{name}.calibration.length"] = stage.calibration.length
    for setting, length in lengths.items():
        most = readable(length, student.config)
        if most < readable(length, teacher.config):
            raise UserError(
                f"{setting}={length}: the student has {most} positions, and its teacher more.",
                f"Give {setting}={most}.",
            )


def check_finite(figures: Mapping[str, Any], original: Checkpoint) -> None:
    """Refuse a model that overflows by itself: nothing can be measured on it, let alone fitted.

    Raises:
        UserError: its perplexity, if that was measured, is not a number.
    """
    ppl = figures.get("ppl", 1.0)
    if not math.isfinite(ppl):
        raise UserError(
            f"the model in {original.folder} gives no finite perplexity ({ppl}) when it runs in {original.dtype_name}.",
            "Store it in bfloat16 or float32, and look for weights that are not finite.",
        )


def available_threads() -> int:
    """Cores this process may use: those it may run on, no more than a container's share of time fills, and on a Mac the
    fast ones."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else fast_cores() or os.cpu_count() or 1
    return min(there, cores_of_quota() or there)


def check_device(device: str) -> str:
    """`cpu` or `cuda`, before anything is computed there.

    Raises:
        UserError: cuda was asked for and is not there.
    """
    import torch

    # training that repeats asks for it, and cuBLAS reads it at the first product of the process
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device=cuda was asked for, but torch sees no CUDA device.", "Leave it out, or give device=cpu."
        )
    return device
