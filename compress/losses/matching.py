"""Matching the inside of the teacher: the residual stream after layers, and what attention reads.

    loss = logits + hidden * E(H) + attention * E(A),   E(X) = mean over layers and scored tokens of
                                                               ||P x_s - x_t||^2 / ||x_t||^2

H: the stream after a layer (TinyBERT, arXiv 1909.10351, sec. 3; DistilBERT), A: the normed input of a layer's attention
(Minitron, arXiv 2407.14679, sec. 4, finds such terms to help after deep cuts of depth). The error is relative to each
token's own size, since the first tokens of a text are hundreds of times larger than the rest.

Layer map. A student layer stands for a teacher layer (`starts`): the pruning plan says which, else the layers are
spread evenly. A layer in front of dropped ones has to end where they ended: its stream is compared with the input of
the teacher layer that the *next* student layer stands for (`ends`).

P [teacher width, student width] is learned where widths differ: one for H and one for A, since all layers share the
stream's basis. It starts as the placement of the channels that pruning kept (the plan again), else as a random
orthogonal matrix. It is trained beside the student, saved with its progress, and dropped at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress.arch import adapter_for

if TYPE_CHECKING:
    from compress_kernels import FusedLoss

    from compress.losses.terms import Terms

PROJECTION_RATE = 10.0
"""Rate of a projection that starts anywhere, relative to that of the student."""
SEED = 0


@dataclass(frozen=True)
class LayerMap:
    """For every student layer, the teacher layer it stands for, and the one whose output its own is compared with."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, starts: tuple[int, ...], teacher_layers: int) -> LayerMap:
        """Ends from starts: just before the teacher layer that the next student layer stands for.

        A layer that stands for the same one as the next, in a student deeper than its teacher, ends there too.
        """
        following = (*starts[1:], teacher_layers)
        return cls(starts, tuple(max(start, after - 1) for start, after in zip(starts, following, strict=True)))

    @classmethod
    def uniform(cls, student_layers: int, teacher_layers: int) -> LayerMap:
        """The student's layers spread evenly over the teacher's."""
        return cls.of(tuple(i * teacher_layers // student_layers for i in range(student_layers)), teacher_layers)


@dataclass(frozen=True)
class Kept:
    """What a pruning plan says: teacher layers and residual channels that are the student's."""

    layers: tuple[int, ...]
    channels: tuple[int, ...]


_Key = tuple[str, str, int]  # student or teacher, kind of state, layer


def _computed_again() -> bool:
    """Whether a backward pass runs: with activation checkpointing layers run once more in it, and nobody asks."""
    return torch._C._current_graph_task_id() != -1


def _note_input(seen: dict[_Key, Tensor], key: _Key, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if not _computed_again():
        seen[key] = inputs[0]


def _note_output(
    seen: dict[_Key, Tensor], key: _Key, _module: nn.Module, _inputs: Any, output: Tensor | tuple[Any, ...]
) -> None:
    if not _computed_again():
        seen[key] = output[0] if isinstance(output, tuple) else output


class Matched(nn.Module):
    """The logits loss with matching terms: what a training calls, and the projections that train with it.

    Forward hooks note the states of both models as they compute; `close` takes them off. All of it pickles together
    with the two models, so that a training can be handed to other processes.
    """

    def __init__(self, terms: Terms, student: Any, teacher: Any, kept: Kept | None) -> None:
        super().__init__()
        self.terms = terms
        count, teacher_count = student.config.num_hidden_layers, teacher.config.num_hidden_layers
        layers = LayerMap.uniform(count, teacher_count) if kept is None else LayerMap.of(kept.layers, teacher_count)
        self._seen: dict[_Key, Tensor] = {}
        self._handles: list[Any] = []
        self.pairs: dict[str, list[tuple[int, int]]] = {}
        targets = {"hidden": layers.ends, "attention": layers.starts}
        widths = student.config.hidden_size, teacher.config.hidden_size
        self.projections = nn.ModuleDict()
        for kind, weight in (("hidden", terms.hidden), ("attention", terms.attention)):
            if not weight:
                continue
            self.pairs[kind] = list(enumerate(targets[kind]))
            for own, other in self.pairs[kind]:
                self._watch(student, "student", kind, own)
                self._watch(teacher, "teacher", kind, other)
            if widths[0] != widths[1]:
                self.projections[kind] = projection(*widths, None if kept is None else kept.channels)

    def _watch(self, model: Any, side: str, kind: str, index: int) -> None:
        modules = adapter_for(model.config).modules
        layer, key = modules.layer(index), (side, kind, index)
        if kind == "hidden":
            hook = model.get_submodule(layer).register_forward_hook(partial(_note_output, self._seen, key))
        else:
            first = model.get_submodule(f"{layer}.{modules.attention[0]}")
            hook = first.register_forward_pre_hook(partial(_note_input, self._seen, key))
        self._handles.append(hook)

    def forward(self, student: tuple[Tensor, Tensor], teacher: Any, ids: Tensor, scored: Tensor) -> FusedLoss:
        """As `Logits.__call__`, after both models have run on `ids`; `total` has the matching terms in it."""
        loss = self.terms(student, teacher, ids, scored)
        total = loss.total
        for kind, pairs in self.pairs.items():
            errors = [
                self._error(kind, self._seen["student", kind, own], self._seen["teacher", kind, other], scored)
                for own, other in pairs
            ]
            total = total + getattr(self.terms, kind) * torch.stack(errors).mean()
        self._seen.clear()
        return loss._replace(total=total)

    def _error(self, kind: str, own: Tensor, other: Tensor, scored: Tensor) -> Tensor:
        """Mean relative squared error of one layer's states [batch, length, width]."""
        own, other = own[:, :-1][scored], other[:, :-1][scored].float()
        placed = self.projections[kind](own) if kind in self.projections else own
        error = (placed.float() - other).square().sum(-1) / other.square().sum(-1).clamp(min=1e-6)
        return error.sum() / max(1, len(error))

    def close(self) -> None:
        """The models are as they were."""
        for handle in self._handles:
            handle.remove()
        self._seen.clear()


def projection(width: int, teacher_width: int, channels: tuple[int, ...] | None) -> nn.Linear:
    """P as a layer without bias: the kept channels in their places, or random and orthogonal."""
    made = nn.Linear(width, teacher_width, bias=False)
    weight: Any = made.weight
    with torch.no_grad():
        if channels is not None and len(channels) == width:
            weight.zero_()
            weight[list(channels), torch.arange(width)] = 1.0
        else:
            nn.init.orthogonal_(weight, generator=torch.Generator().manual_seed(SEED))
            weight.rate_factor = PROJECTION_RATE
    return made
