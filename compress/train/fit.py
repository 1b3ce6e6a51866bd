"""Runs one training: here or in several processes, builds the Lightning Trainer, goes on after a kill."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from compress.hardware import gpu_has_bf16, native_bf16
from compress.memory import release
from compress.train.batches import Batches
from compress.train.callbacks import ShowProgress, StopOnNaN
from compress.train.loggers import Log, loggers_for
from compress.train.module import Distillation, Loss
from compress.train.quiet import quiet_lightning
from compress.train.resume import DirectSave, SaveProgress, saved_progress
from compress.train.settings import Keep, Precision, Training
from compress.train.strategy import plugins, strategy_for
from compress.train.student import held_out_for
from compress.train.validate import BEST, Validate, best, load_weights

if TYPE_CHECKING:
    from compress.data.windows import Windows
    from compress.stage import Context, Progress


@dataclass(frozen=True)
class Job:
    """One training, whole: what a process needs to do its part of it."""

    student: nn.Module
    """Causal language model; fp32 where it trains. What requires a gradient trains, in place."""
    teacher: nn.Module
    """Causal language model with the same vocabulary, or what a store holds of one."""
    loss: Loss
    """From hidden states and head weights of both to a loss."""
    windows: Windows
    settings: Training
    scratch: Path
    """Where progress is saved."""
    device: str
    """cpu or cuda."""
    held_out: Tensor | None = None
    """int64 [n, length], to validate on."""
    logs: Path | None = None
    """Where loggers write."""


@dataclass(frozen=True)
class Fitted:
    """What a training run says about itself."""

    steps: int
    tokens: int
    curve: list[dict[str, float]]
    resumed_at: int
    tokens_per_second: float
    validations: list[dict[str, float]] = field(default_factory=list)
    """Step, and loss and KL on held-out text then."""

    def metrics(self) -> dict[str, Any]:
        """For the report. The curve has at most 200 points."""
        stride = max(1, math.ceil(len(self.curve) / 200))
        measured: dict[str, Any] = {}
        if self.validations:
            measured = {"validations": self.validations, "best_step": self.validations[best(self.validations)]["step"]}
        return measured | {
            "steps": self.steps,
            "train_tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second,
            "resumed_at_step": self.resumed_at,
            "curve": self.curve[::stride],
            "last_kl": self.curve[-1]["kl"] if self.curve else None,
        }


def lightning_precision(precision: Precision, device: torch.device) -> str:
    """Lightning's name for the precision; `auto` is bf16 wherever the hardware multiplies it natively."""
    if precision is Precision.auto:
        native = gpu_has_bf16(device.index) if device.type == "cuda" else native_bf16()
        precision = Precision.bf16 if native else Precision.fp32
    return "bf16-mixed" if precision is Precision.bf16 else "32-true"


def fit(
    student: nn.Module, teacher: nn.Module, loss: Loss, windows: Windows, settings: Training, context: Context
) -> Fitted:
    """Train what requires a gradient in `student`, in place.

    Args:
        student: causal language model; fp32 where it trains.
        teacher: causal language model with the same vocabulary.
        loss: from hidden states and head weights of both to a loss.
        windows: training text.
        settings: budget, rate, batch, processes.
        context: where progress goes.

    Raises:
        UserError: nothing trains, or the loss is not a number.
    """
    device = "cuda" if context.fabric.device.type == "cuda" else "cpu"
    held_out = held_out_for(settings, context) if settings.validate_every else None
    job = Job(student, teacher, loss, windows, settings, context.scratch, device, held_out, context.logs)
    if settings.devices > 1:
        from compress.train.processes import train_in_processes

        return train_in_processes(job, context.progress)
    fitted = train(job, context.progress)
    if settings.keep is Keep.best:
        load_weights(student, context.scratch / BEST)
    return fitted


def train(job: Job, progress: Progress, rank: int = 0) -> Fitted:
    """This process' part of a training; all of it where there is one process.

    Args:
        job: what to train on what.
        progress: shows how far it is.
        rank: of this process among `job.settings.devices`.
    """
    settings = job.settings
    steps = math.ceil(len(job.windows.ids) / settings.batch)
    module = Distillation(job.student, job.teacher, job.loss, settings, steps)
    batches = Batches(job.windows, settings, steps, rank)
    resume = saved_progress(job.scratch)
    if resume:
        batches.first_step = torch.load(resume, map_location="cpu", weights_only=True)["global_step"]
        progress.say(f"goes on at step {batches.first_step} of {steps}")
    validation = [] if job.held_out is None else [Validate(job.held_out, settings, job.scratch, rank)]
    release()
    begin = time.monotonic()
    with quiet_lightning(), progress.bar("training", steps) as advance:
        advance(batches.first_step)
        show = ShowProgress(advance)
        show.shown = batches.first_step
        trainer = lightning.Trainer(
            accelerator=job.device,
            devices=settings.devices,
            strategy=strategy_for(settings),
            max_steps=steps,
            max_epochs=-1,
            precision=lightning_precision(settings.precision, torch.device(job.device)),
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.clip,
            callbacks=[show, StopOnNaN(), *validation, Log(), SaveProgress(job.scratch, settings)],
            plugins=[DirectSave(), *plugins(settings)],
            logger=loggers_for(settings, job.logs or job.scratch / "logs") or False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            deterministic=True,
        )
        trainer.fit(module, DataLoader(batches, batch_size=None), ckpt_path=resume, weights_only=True)
    seconds = time.monotonic() - begin
    made = len(module.curve)
    tokens = job.windows.tokens * made // steps
    rate = job.windows.tokens * (made - batches.first_step) / steps / seconds
    return Fitted(made, tokens, module.curve, batches.first_step, rate, module.validations)
