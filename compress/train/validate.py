"""Validation while training, the best weights kept, and the end when nothing gets better any more.

All of it is a function of steps and weights: a run that was killed and goes on validates, keeps and stops as an
undisturbed one. The best weights lie beside the progress, in a file that is replaced whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from compress.durable import sync_file, sync_folder
from compress.losses.terms import comparable
from compress.train.settings import Keep, Training

BEST = "best.safetensors"


def whole(parameter: Tensor) -> Tensor:
    """All of a parameter, on every process, wherever its parts are."""
    from torch.distributed.tensor import DTensor

    tensor = parameter.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu().contiguous()


def trained_weights(student: nn.Module) -> dict[str, Tensor]:
    """What trains, by name, whole; to be asked for on all processes."""
    return {name: whole(p) for name, p in student.named_parameters() if p.requires_grad}


def load_weights(student: nn.Module, file: Path) -> None:
    """Put `trained_weights` that were saved back where they came from."""
    from safetensors.torch import load_file

    parameters = dict(student.named_parameters())
    with torch.no_grad():
        for name, tensor in load_file(file).items():
            parameters[name].copy_(tensor)


def best(validations: list[dict[str, float]]) -> int:
    """Index of the first with the lowest loss."""
    return min(range(len(validations)), key=lambda i: comparable(validations[i]["loss"]))


class Validate(Callback):
    """Measures every `validate_every` training tokens and at the end; what follows from it is in the module's words."""

    def __init__(self, windows: Tensor, settings: Training, scratch: Path, rank: int) -> None:
        self.settings, self.scratch = settings, scratch
        # a model with fewer positions than settings.length trains on shorter windows
        self.every = max(1, round(settings.validate_every / (settings.batch * windows.shape[1])))
        # every process measures its share, in as many pieces as the others
        own = windows[rank :: settings.devices][: len(windows) // settings.devices]
        self.pieces = torch.split(own, settings.batch // settings.accumulate // settings.devices)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure if it is time."""
        if (batch_idx + 1) % self.settings.accumulate:
            return
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: lightning.Trainer, module: Any) -> None:
        from torch.distributed.fsdp import FSDPModule

        sums = torch.zeros(3, device=module.device)
        with trainer.precision_plugin.forward_context():
            for piece in self.pieces:
                sums += module.held_out(piece.to(module.device))
        if isinstance(module, FSDPModule):
            # no backward pass follows that would divide the outermost weights again
            module.reshard()
        if self.settings.devices > 1:
            sums = trainer.strategy.reduce(sums, reduce_op="sum")
        loss, kl, count = sums.tolist()
        found = module.validations
        found.append({"step": trainer.global_step, "loss": loss / count, "kl": kl / count})
        since = len(found) - 1 - best(found)
        if self.settings.keep is Keep.best and since == 0:
            weights = trained_weights(module.student)
            if trainer.is_global_zero:
                self._save(weights)
        if self.settings.patience and since >= self.settings.patience:
            trainer.should_stop = True

    def _save(self, weights: dict[str, Tensor]) -> None:
        from safetensors.torch import save_file

        part = self.scratch / f"{BEST}.part"
        save_file(weights, part)
        sync_file(part)
        part.replace(self.scratch / BEST)
        sync_folder(self.scratch)
