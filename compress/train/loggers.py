"""The curve of a training, written while it grows: Lightning's CSV and TensorBoard loggers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from compress.train.settings import Logger, Training


def loggers_for(settings: Training, folder: Path) -> list[Any]:
    """The loggers asked for, each writing into a folder of its own below `folder`."""
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    kinds = {Logger.csv: CSVLogger, Logger.tensorboard: TensorBoardLogger}
    return [kinds[logger](folder, name=logger.value, version="") for logger in settings.loggers]


class Log(Callback):
    """Tells every logger about every step, and about validations; a run that goes on tells again what was before."""

    def __init__(self) -> None:
        self.steps = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """What an earlier process has trained: its files are begun anew."""
        self._tell(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """What is new."""
        self._tell(trainer, pl_module)

    def _tell(self, trainer: lightning.Trainer, module: Any) -> None:
        for step in range(self.steps, len(module.curve)):
            self._write(trainer, module.curve[step], step + 1)
            for found in module.validations:
                if found["step"] == step + 1:
                    self._write(trainer, {f"held_out_{name}": found[name] for name in ("loss", "kl")}, step + 1)
        self.steps = len(module.curve)

    def _write(self, trainer: lightning.Trainer, values: dict[str, float], step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(values, step)
