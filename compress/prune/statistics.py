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
class Statistics:
    """Sums over the text; every window adds to them."""

    shape: Shape
    block: int = 1
    """Layers in the blocks whose angular distance is taken."""
    neurons: defaultdict[int, Moments] = field(default_factory=lambda: defaultdict(Moments))
    heads: defaultdict[int, Moments] = field(default_factory=lambda: defaultdict(Moments))
    norms: defaultdict[str, Moments] = field(default_factory=lambda: defaultdict(Moments))
    cosines: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    angles: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    windows: int = 0

    def influence(self) -> Tensor:
        """Block Influence of every layer."""
        return block_influence(torch.tensor([self.cosines[layer] / self.windows for layer in range(self.shape.layers)]))

    def angular(self) -> Tensor:
        """Scores under which the best block of layers goes."""
        starts = range(self.shape.layers - self.block + 1)
        return contiguous(torch.tensor([self.angles[start] / self.windows for start in starts]), self.block)

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


def collect(model: Any, architecture: Architecture, windows: Tensor, block: int, advance: Advance) -> Statistics:
    """One pass over `windows` [n, length] for all criteria that need no gradient.

    Args:
        model: causal language model.
        architecture: its family.
        windows: tokens.
        block: layers in the blocks whose angular distance is taken.
        advance: called with 1 after each window.
    """
    found = Statistics(architecture.shape(model.config), block)
    modules = architecture.modules
    observers: dict[str, Observer] = {}
    streams: list[Tensor] = []
    for layer in range(found.shape.layers):
        observers[modules.neurons(layer)] = _adds_input(found.neurons[layer])
        observers[modules.head_outputs(layer)] = _adds_input(found.heads[layer])
        observers[modules.layer(layer)] = _adds_turning(found, layer, streams)
        for path in modules.norms(layer):
            observers[path] = _adds_output(found.norms[path])
    walk(model, windows, observers, advance)
    found.windows = len(windows)
    return found


def _adds_input(moments: Moments) -> Observer:
    return lambda x, _: moments.add(x)


def _adds_output(moments: Moments) -> Observer:
    return lambda _, normed: moments.add(normed)


def _adds_turning(found: Statistics, layer: int, streams: list[Tensor]) -> Observer:
    """How far one layer, and the block that ends with it, turn the stream."""

    def observer(before: Tensor, after: Tensor) -> None:
        if layer == 0:
            streams.clear()
        streams.append(before)
        found.cosines[layer] += float(_cosine(before, after).mean())
        start = layer - found.block + 1
        if start >= 0:
            cosine = _cosine(streams[start], after).clamp(-1, 1)
            found.angles[start] += float(cosine.arccos().mean()) / pi

    return observer


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a.float(), b.float(), dim=-1)
