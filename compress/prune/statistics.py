"""The statistics pruning scores by, collected in one walk over the calibration text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.arch import Architecture, Shape
from compress.calibrate import Observer, walk
from compress.prune.importance import activation, activation_energy, block_influence, by_group
from compress.prune.plan import Scores

if TYPE_CHECKING:
    from compress.stage import Advance


@dataclass
class Statistics:
    """Sums over the text; every window adds to them."""

    shape: Shape
    neurons: dict[int, Tensor] = field(default_factory=dict)
    heads: dict[int, Tensor] = field(default_factory=dict)
    hidden: Tensor | None = None
    cosines: dict[int, float] = field(default_factory=dict)
    windows: int = 0

    def scores(self) -> Scores:
        """Activation importance of every group; Block Influence of every layer."""
        layers = range(self.shape.layers)
        cosines = torch.tensor([self.cosines[layer] / self.windows for layer in layers])
        heads = torch.stack([activation(self.heads[layer]) for layer in layers])
        return Scores(
            layers=block_influence(cosines),
            mlp=torch.stack([activation(self.neurons[layer]) for layer in layers]),
            heads=by_group(heads, self.shape.kv_heads),
            hidden=None if self.hidden is None else activation(self.hidden),
        )


def collect(model: Any, architecture: Architecture, windows: Tensor, advance: Advance) -> Statistics:
    """One pass over `windows` [n, length] for all criteria."""
    config = model.config
    found = Statistics(architecture.shape(config))
    modules = architecture.modules
    observers: dict[str, Observer] = {}
    for layer in range(found.shape.layers):
        observers[modules.neurons(layer)] = _adds_input(found.neurons, layer)
        observers[modules.head_outputs(layer)] = _adds_input(found.heads, layer)
        observers[modules.layer(layer)] = _adds_cosine(found.cosines, layer)
        for path in modules.norms(layer):
            observers[path] = _adds_hidden(found)
    walk(model, windows, observers, advance)
    found.windows = len(windows)
    return found


def _adds_input(sums: dict[int, Tensor], layer: int) -> Observer:
    def observer(x: Tensor, _: Tensor) -> None:
        energy = activation_energy(x)
        sums[layer] = sums[layer] + energy if layer in sums else energy

    return observer


def _adds_hidden(found: Statistics) -> Observer:
    def observer(_: Tensor, normed: Tensor) -> None:
        energy = activation_energy(normed)
        found.hidden = energy if found.hidden is None else found.hidden + energy

    return observer


def _adds_cosine(sums: dict[int, float], layer: int) -> Observer:
    def observer(before: Tensor, after: Tensor) -> None:
        cosine = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1).mean()
        sums[layer] = sums.get(layer, 0.0) + float(cosine)

    return observer
