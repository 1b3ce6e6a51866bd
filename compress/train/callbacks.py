"""What happens around the steps of a training: the progress bar, and a stop when the loss is no number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from compress.errors import UserError

if TYPE_CHECKING:
    from compress.stage import Advance


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
