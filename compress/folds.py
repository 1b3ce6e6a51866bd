"""Scales moved between layers before rounding: what a channel is divided by, the next layer multiplies; exact but for
the rounding of norms and weights in the type they are stored in.

    AWQ           s_j = mean |x_j|^a                      weights of salient inputs grow, so rounding costs them less
    SmoothQuant   s_j = max |x_j|^a / max |w_j|^(1 - a)   loud inputs shrink, so one INT8 scale per token suits them all

x are a linear layer's inputs, w its weights. Where the weights become INT8 too, |x_j| is taken as a share of its
token's largest, and the mean of the shares' fourth powers stands for the maximum, that of a few first tokens alone.
The exponent a is searched for every edge: the one with the least error of the outputs, with the weights on their grid
and the inputs as they will run. The scale ends up in the norm or projection in front (`arch` lists the edges where that
is exact), so the result is a plain checkpoint.

AWQ: arXiv 2306.00978, eq. 4-5. SmoothQuant: arXiv 2211.10438, eq. 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.arch import Shape, adapter_for
from compress.arch.modules import Fold
from compress.grids import Grid, Int8, level_of, value_of
from compress.grids.int8 import fake_quantize
from compress.layerwise import Layers, inputs_and_output

EXPONENTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FOLD_TOKENS = 4096
"""Tokens that the scales of a layer are searched on."""
SAMPLE = 1024
"""Tokens the exponents are compared on."""


@dataclass(frozen=True)
class Edge:
    """A fold of one layer: the modules themselves.

    Attributes:
        source: norm or linear.
        targets: linear layers that read it.
        heads: (query heads per KV group, head size) where the targets read heads; None elsewhere.
        conv1d: linear weights are [in, out].
    """

    source: Any
    targets: Sequence[Any]
    heads: tuple[int, int] | None
    conv1d: bool

    def shared(self, scale: Tensor) -> Tensor:
        """One scale for each channel of the source [channels], from one for each input of the targets [inputs].

        Query heads of a KV group read the same values: they get the mean of their logarithms.
        """
        if self.heads is None:
            return scale
        queries, size = self.heads
        return scale.log().view(-1, queries, size).mean(1).exp().flatten()

    def spread(self, scale: Tensor) -> Tensor:
        """Back from the source's channels to the targets' inputs."""
        if self.heads is None:
            return scale
        queries, size = self.heads
        return scale.view(-1, 1, size).expand(-1, queries, size).flatten()

    @torch.no_grad()
    def apply(self, scale: Tensor) -> None:
        """Divide the source's channels by `scale` [channels] and multiply the targets' inputs by it."""
        source: Any = self.source
        transposed = self.conv1d and source.weight.dim() == 2
        divisor = scale.to(source.weight.device)
        column = divisor if source.weight.dim() == 1 or transposed else divisor[:, None]
        source.weight.copy_(source.weight.float() / column)
        if getattr(source, "bias", None) is not None:
            source.bias.copy_(source.bias.float() / divisor)
        factor = self.spread(divisor)
        for target in self.targets:
            target.weight.copy_(target.weight.float() * (factor[:, None] if self.conv1d else factor))


def edges(model: Any, layer: str, folds: Sequence[Fold], shape: Shape, conv1d: bool) -> list[tuple[str, Edge]]:
    """Every fold of one layer with the path of its first target."""
    heads = (shape.queries, shape.head_dim)
    found = []
    for fold in folds:
        targets = [model.get_submodule(f"{layer}.{name}") for name in fold.targets]
        source = model.get_submodule(f"{layer}.{fold.source}")
        found.append((f"{layer}.{fold.targets[0]}", Edge(source, targets, heads if fold.heads else None, conv1d)))
    return found


def fold_layer(
    layers: Layers,
    index: int,
    hidden: Tensor,
    grids: Mapping[str, Grid],
    *,
    conv1d: bool,
    smooth: bool,
    int8_inputs: bool,
) -> None:
    """Search and apply the scales of every fold of one layer whose targets all have a grid, in place.

    Args:
        layers: of the model.
        index: of the layer.
        hidden: what it reads, [windows, length, width]; the first of them are used.
        grids: path of a linear layer -> the grid it will lie on.
        conv1d: the layer's projections are Conv1D.
        smooth: SmoothQuant's formula; else AWQ's.
        int8_inputs: inputs will be rounded to INT8, a scale a token.
    """
    architecture = adapter_for(layers.model.config)
    modules, layer = architecture.modules, architecture.modules.layer(index)
    found = edges(layers.model, layer, modules.folds, architecture.shape(layers.model.config), conv1d)
    few = hidden[: max(1, FOLD_TOKENS // hidden.shape[1])]
    # folding changes no input but by its own scale, so all can be seen before the first is applied
    inputs, _ = inputs_and_output(layers, index, few, [path for path, _ in found])
    for (path, edge), fold in zip(found, modules.folds, strict=True):
        on = {i: grids[f"{layer}.{name}"] for i, name in enumerate(fold.targets) if f"{layer}.{name}" in grids}
        if len(on) == len(fold.targets):
            edge.apply(best_scale(edge, torch.cat(inputs[path]).flatten(0, 1), on, smooth, int8_inputs))


@torch.no_grad()
def best_scale(edge: Edge, inputs: Tensor, grids: Mapping[int, Grid], smooth: bool, int8_inputs: bool) -> Tensor:
    """The scale of the source's channels with the least squared error of the targets' outputs.

    Args:
        edge: the fold.
        inputs: of the targets, [tokens, inputs].
        grids: index of a target -> its grid.
        smooth: SmoothQuant's formula; else AWQ's.
        int8_inputs: inputs are rounded to INT8, a scale a token.
    """
    x = inputs.float()
    weights = [(t.weight.t() if edge.conv1d else t.weight).float() for t in edge.targets]
    if smooth and all(isinstance(grid, Int8) for grid in grids.values()):
        shares = x.abs() / x.abs().amax(1, keepdim=True).clamp_min(1e-5)
        loud = shares.pow(4).mean(0).pow(0.25).clamp_min(1e-5)
    else:
        loud = (x.abs().amax(0) if smooth else x.abs().mean(0)).clamp_min(1e-5)
    strong = torch.stack([w.abs().amax(0) for w in weights]).amax(0).clamp_min(1e-5)
    rows = x[torch.linspace(0, len(x) - 1, min(SAMPLE, len(x))).long()]
    outputs = [rows @ w.t() for w in weights]
    best, best_error = torch.ones_like(edge.shared(loud)), float("inf")
    for exponent in EXPONENTS:
        raw = loud**exponent / strong ** (1 - exponent) if smooth and exponent else loud**exponent
        scale = edge.shared(raw)
        scale = scale / (scale.amax() * scale.amin()).sqrt()
        if not exponent:
            scale = torch.ones_like(scale)
        spread = edge.spread(scale)
        seen = rows / spread
        seen = fake_quantize(seen) if int8_inputs else seen
        error = 0.0
        for index, (w, y) in enumerate(zip(weights, outputs, strict=True)):
            scaled = w * spread
            grid = grids[index]
            scales = grid.start(scaled)
            rounded = value_of(level_of(scaled, scales, grid), scales)
            error += float((seen @ rounded.t() - y).square().sum())
        if error < best_error:
            best, best_error = scale, error
    return best
