"""One Lightning module for every stage that trains: a student of which some parameters train, and a frozen teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Union

import lightning
import torch
from torch import Tensor, nn

from compress.losses.stored import StoredTeacher
from compress.train.activations import checkpoint_activations, decoder_layers
from compress.train.muon import mark_tables
from compress.train.norms import fuse_norms, put_modules
from compress.train.optimizer import make_optimizer
from compress.train.settings import Training, rate_at

if TYPE_CHECKING:
    from compress_kernels import FusedLoss, SparseTargets

Targets = Union[tuple[Tensor, Tensor], "SparseTargets"]
Loss = Callable[[tuple[Tensor, Tensor], Targets, Tensor, Tensor], "FusedLoss"]


def last_hidden(model: nn.Module, ids: Tensor) -> Tensor:
    """Hidden states before the head, [batch, length, width]: logits of the whole vocabulary are never made.

    Windows are padded on the right, where causal attention never looks, so no mask is needed.
    """
    decoder: Any = model.base_model
    hidden: Tensor = decoder(input_ids=ids, use_cache=False).last_hidden_state
    return hidden


def head_weight(model: Any) -> Tensor:
    """Output embedding [vocab, width]."""
    weight: Tensor = model.get_output_embeddings().weight
    return weight


class Distillation(lightning.LightningModule):
    """Trains what requires a gradient in `student` to match `teacher`.

    The teacher stays outside the module tree: it is no part of a checkpoint. A loss that is a module itself trains what
    it holds (projections), beside the student. Both models run in evaluation mode, since dropout would be noise on a
    target that is known exactly.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, loss: Loss, settings: Training, steps: int) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher,)
        self.loss = loss
        self.settings = settings
        self.steps = steps
        self.curve: list[dict[str, float]] = []
        self.validations: list[dict[str, float]] = []
        self._sums = torch.zeros(3)
        self._sharded = False
        self._heads: dict[str, Tensor] = {}
        # a divided parameter is another object, without the attributes of the one it came from
        self._factors = {name: p.rate_factor for name, p in student.named_parameters() if hasattr(p, "rate_factor")}
        self._plain_norms = [(model, fuse_norms(model)) for model in (student, teacher)]
        # a checkpoint holds what trains; on_load_checkpoint sees to it that this is all there
        self.strict_loading = False

    def configure_model(self) -> None:
        """With FSDP2, divide the weights: layer by layer, and the rest, head included, as they are needed in a step."""
        if self.device_mesh is None or self._sharded:
            return
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        mesh = self.device_mesh["data_parallel"]
        for layer in decoder_layers(self.student):
            fully_shard(layer, mesh=mesh)
        fully_shard(self, mesh=mesh)
        for method in ("training_step", "held_out"):
            register_fsdp_forward_method(self, method)
        self._sharded = True

    def on_train_start(self) -> None:
        """Dropout off, teacher where the student is."""
        self.eval()
        checkpoint_activations(self.student, self.settings.activation_checkpointing)
        self._teacher[0].to(self.device).requires_grad_(False).eval()

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Loss of a micro-batch: `ids` [batch, length], `lengths`, `rows` [batch]; `share`, its weight in the step."""
        loss, _ = self._compare(batch["ids"].long(), batch["lengths"], batch["rows"])
        share = batch["share"]
        self._sums += float(share) * torch.tensor([float(loss.total.detach()), float(loss.kl), float(loss.ce)])
        if (index + 1) % self.settings.accumulate == 0:
            mean = self._over_processes(self._sums / self.settings.accumulate).tolist()
            self.curve.append({"loss": mean[0], "kl": mean[1], "ce": mean[2], "rate": self._rate()})
            self._sums.zero_()
        return loss.total * share

    def _compare(self, ids: Tensor, lengths: Tensor, rows: Tensor | None) -> tuple[FusedLoss, Tensor]:
        """The mean loss of some windows, and which positions were scored."""
        with torch.no_grad():
            teacher = self._targets(ids, rows)
        student = last_hidden(self.student, ids), self._head(self.student, "student")
        scored = torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None]
        return self.loss(student, teacher, ids, scored), scored

    def _head(self, model: nn.Module, whose: str) -> Tensor:
        """The head as the loss multiplies with it: one that does not train is cast once, not for every chunk."""
        weight = head_weight(model)
        kind = weight.device.type
        if weight.requires_grad or self._sharded or not torch.is_autocast_enabled(kind):
            return weight
        dtype = torch.get_autocast_dtype(kind)
        if weight.dtype == dtype:
            return weight
        if whose not in self._heads:
            self._heads[whose] = weight.detach().to(dtype)
        return self._heads[whose]

    @torch.no_grad()
    def held_out(self, ids: Tensor) -> Tensor:
        """[3]: loss and KL summed over the scored positions of whole windows [n, length], and their number."""
        loss, scored = self._compare(ids, torch.full((len(ids),), ids.shape[1], device=ids.device), None)
        count = scored.sum()
        return torch.stack([loss.total * count, loss.kl * count, count.float()])

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        """Gradients go as soon as they are used: Lightning would keep them through the next forward pass."""
        if (index + 1) % self.settings.accumulate == 0:
            self.zero_grad(set_to_none=True)

    def on_train_end(self) -> None:
        """The student as it was, but for its weights."""
        checkpoint_activations(self.student, False)
        # divided weights live in the modules they were divided in, and end with their process
        for model, norms in [] if self._sharded else self._plain_norms:
            put_modules(model, norms)

    def _over_processes(self, mean: Tensor) -> Tensor:
        if self.settings.devices == 1:
            return mean
        reduced: Tensor = self.trainer.strategy.reduce(mean.to(self.device), reduce_op="mean")
        return reduced

    def _targets(self, ids: Tensor, rows: Tensor | None) -> Targets:
        """What the loss takes of the teacher: states and head, or what a store holds of the training windows `rows`."""
        teacher = self._teacher[0]
        if isinstance(teacher, StoredTeacher):
            assert rows is not None, "a store knows training windows only"
            return teacher.targets(rows, ids.shape[1] - 1)
        return last_hidden(teacher, ids), self._head(teacher, "teacher")

    def _rate(self) -> float:
        return self.settings.rate * rate_at(self.global_step, self.steps, self.settings)

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer of the settings, its rate set before every step."""
        for name, parameter in self.student.named_parameters():
            if name in self._factors:
                parameter.rate_factor = self._factors[name]  # type: ignore[attr-defined]
        mark_tables(self.student)
        optimizer = make_optimizer(self.settings.optimizer, self.parameters(), self.settings.rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, self.steps, self.settings))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the whole norm. bf16 needs no loss scale, so fused optimizers, which Lightning refuses, are right."""
        del gradient_clip_algorithm
        if gradient_clip_val:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def _training(self) -> set[str]:
        return {name for name, p in self.named_parameters() if p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the curves and the random state; of the weights only those that train."""
        training = self._training()
        checkpoint["state_dict"] = {name: t for name, t in checkpoint["state_dict"].items() if name in training}
        checkpoint["curve"], checkpoint["validations"] = self.curve, self.validations
        checkpoint["random_state"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on where the checkpoint was made.

        Raises:
            ValueError: it holds other weights than those that train.
        """
        # FSDP2 has taken the weights out and put them where they belong already
        if "state_dict" in checkpoint and set(checkpoint["state_dict"]) != self._training():
            raise ValueError("the checkpoint holds other weights than those that train")
        self.curve, self.validations = list(checkpoint["curve"]), list(checkpoint["validations"])
        torch.set_rng_state(checkpoint["random_state"])
