"""Runs one training: builds the Lightning Trainer, shows progress, goes on after a kill."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from compress.errors import UserError
from compress.memory import release
from compress.train.module import Distillation, Loss
from compress.train.resume import DirectSave, SaveProgress, saved_progress
from compress.train.settings import Precision, Training

if TYPE_CHECKING:
    from compress.data.windows import Windows
    from compress.stage import Advance, Context


@dataclass(frozen=True)
class Fitted:
    """What a training run says about itself."""

    steps: int
    tokens: int
    curve: list[dict[str, float]]
    resumed_at: int
    tokens_per_second: float

    def metrics(self) -> dict[str, Any]:
        """For the report. The curve has at most 200 points."""
        stride = max(1, math.ceil(len(self.curve) / 200))
        return {
            "steps": self.steps,
            "train_tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second,
            "resumed_at_step": self.resumed_at,
            "curve": self.curve[::stride],
        }


class Batches(IterableDataset[dict[str, Tensor]]):
    """Micro-batches by global step, so that a resumed run sees exactly what an undisturbed one would have seen."""

    def __init__(self, windows: Windows, settings: Training, steps: int) -> None:
        self.windows, self.settings, self.steps = windows, settings, steps
        self.first_step = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        micro = self.settings.batch // self.settings.accumulate
        for start in range(self.first_step * self.settings.batch, self.steps * self.settings.batch, micro):
            rows = torch.arange(start, start + micro) % len(self.windows.ids)
            yield {"ids": self.windows.ids[rows], "lengths": self.windows.lengths[rows], "rows": rows}


class ShowProgress(Callback):
    """Moves our progress bar; one bar for the whole program instead of Lightning's own."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance
        self.shown = 0

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One optimizer step is one unit."""
        self.advance(trainer.global_step - self.shown)
        self.shown = trainer.global_step


class StopOnNaN(Callback):
    """A loss that is not a number never comes back: say so instead of training on."""

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Looks at the last step of the curve."""
        curve = pl_module.curve
        if curve and not math.isfinite(curve[-1]["loss"]):
            raise UserError(
                f"the training loss became {curve[-1]['loss']} at step {len(curve)}.",
                "Lower the rate (stages.<name>.train.rate) or train in fp32 (train.precision=fp32).",
            )


def lightning_precision(precision: Precision, device: torch.device) -> str:
    """Lightning's name for the precision; `auto` is bf16 wherever the hardware multiplies it natively."""
    if precision is Precision.auto:
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
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
        settings: budget, rate, batch.
        context: where progress goes.

    Raises:
        UserError: nothing trains, or the loss is not a number.
    """
    steps = math.ceil(len(windows.ids) / settings.batch)
    module = Distillation(student, teacher, loss, settings, steps)
    batches = Batches(windows, settings, steps)
    resume = saved_progress(context.scratch)
    if resume:
        batches.first_step = torch.load(resume, map_location="cpu", weights_only=True)["global_step"]
        context.progress.say(f"goes on at step {batches.first_step} of {steps}")
    release()
    begin = time.monotonic()
    with quiet_lightning(), context.progress.bar("training", steps) as advance:
        advance(batches.first_step)
        show = ShowProgress(advance)
        show.shown = batches.first_step
        trainer = lightning.Trainer(
            accelerator=context.fabric.device.type if context.fabric.device.type == "cuda" else "cpu",
            devices=1,
            max_steps=steps,
            max_epochs=-1,
            precision=lightning_precision(settings.precision, context.fabric.device),
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.clip,
            callbacks=[show, StopOnNaN(), SaveProgress(context.scratch, settings.checkpoint_seconds)],
            plugins=[DirectSave()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            deterministic=True,
        )
        trainer.fit(module, DataLoader(batches, batch_size=None), ckpt_path=resume, weights_only=True)
    seconds = time.monotonic() - begin
    trained = steps - batches.first_step
    rate = int(windows.lengths.sum()) * trained / steps / seconds if trained else 0.0
    return Fitted(steps, int(windows.lengths.sum()), module.curve, batches.first_step, rate)


class quiet_lightning:  # noqa: N801 - a context manager
    """Keeps Lightning's banners off the screen: what it would say is either shown by us or about settings of ours."""

    def __enter__(self) -> None:
        self.loggers = [
            logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")
        ]
        self.levels = [logger.level for logger in self.loggers]
        for logger in self.loggers:
            logger.setLevel(logging.ERROR)
        self.warnings = warnings.catch_warnings()
        self.warnings.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *exception: object) -> None:
        for logger, level in zip(self.loggers, self.levels, strict=True):
            logger.setLevel(level)
        self.warnings.__exit__(None, None, None)
