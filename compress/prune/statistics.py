"""The statistics pruning scores by, collected in one walk over the text: all forward-only criteria share it.

Kept are sums: a few floats for every neuron, entry of a head, channel of a norm and layer, and the residual stream of
the one window at hand.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from math import pi
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.arch import Architecture, Shape
from compress.calibrate import Observer, walk
from compress.prune.importance import activation, activation_energy, block_influence, by_group, contiguous, wanda
from compress.prune.plan import Scores

if TYPE_CHECKING:
    from compress.stage import Advance


@dataclass
class Moments:
    """Of the features of one place: of |x| as `activation` wants it, and of x^2 over all tokens."""

    energy: Tensor | float = 0.0
    square: Tensor | float = 0.0

    def add(self, x: Tensor) -> None:
        """Take in [batch, sequence, features]."""
        self.energy = self.energy + activation_energy(x)
        self.square = self.square + x.float().square().sum((0, 1))


@dataclass
class Turning:
    """How far every layer, and every block of neighbours, turns the residual stream: sums over the text."""

    layers: int
    block: int = 1
    """Layers in the blocks whose angular distance is taken."""
    cosines: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    angles: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    windows: int = 0
    _streams: list[Tensor] = field(default_factory=list)

    def add(self, layer: int, before: Tensor, after: Tensor) -> None:
        """Take in the stream [windows, length, width] before and after a layer: of the same windows, layer by layer."""
        if layer == 0:
            self._streams.clear()
            self.windows += len(before)
        self._streams.append(before)
        self.cosines[layer] += float(_cosine(before, after).mean(1).sum())
        start = layer - self.block + 1
        if start >= 0:
            cosine = _cosine(self._streams[start], after).clamp(-1, 1)
            self.angles[start] += float(cosine.arccos().mean(1).sum()) / pi

    def influence(self) -> Tensor:
        """Block Influence of every layer."""
        return block_influence(torch.tensor([self.cosines[layer] / self.windows for layer in range(self.layers)]))

    def angular(self) -> Tensor:
        """Scores under which the best block of layers goes."""
        starts = range(self.layers - self.block + 1)
        return contiguous(torch.tensor([self.angles[start] / self.windows for start in starts]), self.block)


@dataclass
class Statistics:
    """Sums over the text; every window adds to them."""

    shape: Shape
    neurons: defaultdict[int, Moments] = field(default_factory=lambda: defaultdict(Moments))
    heads: defaultdict[int, Moments] = field(default_factory=lambda: defaultdict(Moments))
    norms: defaultdict[str, Moments] = field(default_factory=lambda: defaultdict(Moments))

    def activation(self) -> Scores:
        """Activation importance of every group inside the layers, and of the residual channels."""
        layers = range(self.shape.layers)
        heads = torch.stack([activation(torch.as_tensor(self.heads[layer].energy)) for layer in layers])
        return Scores(
            mlp=torch.stack([activation(torch.as_tensor(self.neurons[layer].energy)) for layer in layers]),
            heads=by_group(heads, self.shape.kv_heads),
            query_heads=by_group(heads, self.shape.heads),
            hidden=activation(torch.as_tensor(sum(norm.energy for norm in self.norms.values()))),
        )

    def wanda(self, model: Any, architecture: Architecture) -> Scores:
        """Weight times activation; of a residual channel over all projections that read a norm."""
        modules = architecture.modules

        def columns(path: str) -> Tensor:
            weight: Any = model.get_submodule(path).weight.detach().float()
            return torch.linalg.vector_norm(weight, dim=1 if modules.conv1d else 0)

        layers = range(self.shape.layers)
        mlp = [wanda(torch.as_tensor(self.neurons[i].square), columns(modules.neurons(i))) for i in layers]
        heads = torch.stack(
            [wanda(torch.as_tensor(self.heads[i].square), columns(modules.head_outputs(i))) for i in layers]
        )
        hidden = torch.zeros(self.shape.hidden)
        for layer in layers:
            for fold in modules.folds:
                if fold.source in modules.residual_norms:
                    square = torch.as_tensor(self.norms[f"{modules.layer(layer)}.{fold.source}"].square)
                    for target in fold.targets:
                        read = columns(f"{modules.layer(layer)}.{target}")
                        hidden += wanda(square, read).square().cpu()
        return Scores(
            mlp=torch.stack(mlp),
            heads=by_group(heads, self.shape.kv_heads),
            query_heads=by_group(heads, self.shape.heads),
            hidden=hidden.sqrt(),
        )


def collect(model: Any, architecture: Architecture, windows: Tensor, turning: Turning, advance: Advance) -> Statistics:
    """One pass over `windows` [n, length] for all criteria that need no gradient.

    Args:
        model: causal language model.
        architecture: its family.
        windows: tokens.
        turning: sees the residual stream go by.
        advance: called with 1 after each window.
    """
    shape = architecture.shape(model.config)
    found = Statistics(shape)
    modules = architecture.modules
    observers: dict[str, Observer] = {}
    for layer in range(shape.layers):
        observers[modules.neurons(layer)] = _adds_input(found.neurons[layer])
        observers[modules.head_outputs(layer)] = _adds_input(found.heads[layer])
        observers[modules.layer(layer)] = _adds_turning(turning, layer)
        for path in modules.norms(layer):
            observers[path] = _adds_output(found.norms[path])
    walk(model, windows, observers, advance)
    return found


def _adds_input(moments: Moments) -> Observer:
    return lambda x, _: moments.add(x)


def _adds_output(moments: Moments) -> Observer:
    return lambda _, normed: moments.add(normed)


def _adds_turning(turning: Turning, layer: int) -> Observer:
    return lambda before, after: turning.add(layer, before, after)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a.float(), b.float(), dim=-1)
