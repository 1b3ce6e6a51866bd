"""Progress of a training run that survives a kill: saved whole or not at all, checked by hash when read."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback

from compress.durable import sync_file, sync_folder
from compress.store import file_digest
from compress.train.settings import Strategy, Training

OVERHEAD = 0.1
"""Saving may take this fraction of the time."""
LONGEST = 55.0
"""Seconds of training a kill may cost."""


def saved_progress(scratch: Path) -> Path | None:
    """The newest whole checkpoint in `scratch`.

    Its name holds its hash, since Lightning's own save has lost data silently.
    """
    files = sorted(scratch.glob("progress-*.ckpt"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    return next((file for file in files if file_digest(file) == file.stem.removeprefix("progress-")), None)


class DirectSave(TorchCheckpointIO):
    """Writes straight into the file. Lightning's own makes the whole file in memory first: weights and optimizer state
    once more, at the moment when most is in use. Here a half-written file is never taken for one (`saved_progress`)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save `checkpoint` to the local file `path`."""
        del storage_options
        torch.save(checkpoint, path)


class SaveProgress(Callback):
    """Saves every `seconds`, or as seldom as keeps the cost below a tenth of the time.

    What is saved does not depend on when: the weights at the end are the same however often this happens.
    """

    def __init__(self, scratch: Path, settings: Training) -> None:
        self.scratch = scratch
        # DeepSpeed writes folders of its own, without hashes
        self.seconds = 0.0 if settings.strategy is Strategy.deepspeed else settings.checkpoint_seconds
        self.cost = 0.0
        self.last = time.monotonic()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The clock starts."""
        self.last = time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time and a whole optimizer step has just been made."""
        # after the last step there is nothing to go on with: whoever saved here would train one step more
        if not self.seconds or trainer.global_step >= trainer.max_steps or trainer.should_stop:
            return
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        wait = min(max(self.seconds, self.cost / OVERHEAD), max(LONGEST, self.cost / OVERHEAD))
        # clocks differ: rank 0's counts, and all save together
        if trainer.strategy.broadcast(time.monotonic() - self.last >= wait):
            self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        begin = time.monotonic()
        part = self.scratch / "progress.part"
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            self._keep(part)
        self.last = time.monotonic()
        self.cost = self.last - begin

    def _keep(self, part: Path) -> None:
        sync_file(part)
        final = self.scratch / f"progress-{file_digest(part)}.ckpt"
        part.replace(final)
        sync_folder(self.scratch)
        for older in self.scratch.glob("progress-*.ckpt"):
            if older != final:
                older.unlink()
