"""What the model loses when one tensor goes on a grid, in nats of KL per token, for any number of grids at once.

To second order a change E of a linear layer's weight costs

    KL ~ 1/2 sum_o [ c_o (E (H - m m^T) E^T)_oo + C_o (E m)_o^2 ]
    H = E[x x^T]    m = E[x]    c = E[g^2]    C = E[(sum of g over a window)^2] / length

x are the layer's inputs and g the gradient of log p(label) at its outputs, with labels drawn from the model itself: c
is the diagonal of the Fisher matrix of the outputs (K-FAC, arXiv 1503.05671, with rows of E that know nothing of each
other). What E makes of the mean input is the same at all positions, so it adds up over them (attention sums them),
while the rest is taken to differ from position to position. The first positions of a window are summed each with its
own x and g: attention looks there from everywhere. One walk for H, one with gradients; after that a grid costs one
product per tensor, and layers of every depth and kind are in the same unit. An embedding is a linear layer of one-hot
inputs; a head's KL is computed as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.arch import adapter_for
from compress.calibrate import SINK_TOKENS
from compress.grids import Grid, level_of, value_of
from compress.quant.drawn import backward_from_drawn
from compress.quant.gptq import feedback

if TYPE_CHECKING:
    from compress.stage import Advance

HEAD_TOKENS = 256
"""Tokens that the change of the head's logits is measured on."""


@dataclass
class Slope:
    """Of one module: c and C [outputs], m [inputs], and what the first positions of every window had."""

    each: Tensor
    together: Tensor
    mean: Tensor
    first: list[tuple[Tensor, Tensor]]
    """(x [positions, inputs], g [positions, outputs]); g over the root of the tokens counted."""

    def of_first(self, error: Tensor) -> float:
        """1/2 sum (g^T E x)^2 over first positions: each with its own x and g, since its activations may be massive
        and its slopes small."""
        return sum(float(((x @ error.t()) * g).square().sum()) for x, g in self.first) / 2


def loss_of(error: Tensor, gram: Tensor, slope: Slope) -> float:
    """The formula above. error: [out, in], gram: [in, in]."""
    constant = (error @ slope.mean).square()
    spread = (((error @ gram) * error).sum(1) - constant).clamp_min(0)
    return float((spread * slope.each + constant * slope.together).sum()) / 2 + slope.of_first(error)


def loss_of_embedding(error: Tensor, frequency: Tensor, slope: Slope) -> float:
    """The same for one-hot inputs. error: [vocab, width], frequency: [vocab]."""
    constant = (frequency @ error).square()
    spread = (frequency @ error.square() - constant).clamp_min(0)
    first = sum(float((error[ids.to(error.device)] * g).square().sum()) for ids, g in slope.first) / 2
    return float((spread * slope.each + constant * slope.together).sum()) / 2 + first


def loss_of_head(weight: Tensor, error: Tensor, hidden: Tensor) -> float:
    """Mean KL(p || q) of the next-token distributions before and after. hidden: [tokens, width]."""
    before, after = (F.log_softmax(hidden @ w.t(), -1) for w in (weight, weight + error))
    return float(F.kl_div(after, before, log_target=True, reduction="batchmean"))


def error_of(weight: Tensor, grid: Grid, gram: Tensor | None) -> Tensor:
    """Q(W) - W in fp32: with error feedback where the inputs are known, on the grid's plain scales."""
    w = weight.float()
    scales = grid.start(w)
    levels = level_of(w, scales, grid) if gram is None else feedback(w, gram, grid, scales).levels
    return value_of(levels, scales) - w


@dataclass
class Slopes:
    """What gradients say of a model."""

    modules: dict[str, Slope]
    """By path; the embedding's too."""
    frequency: Tensor
    """[vocab], share of every token in the text."""
    hidden: Tensor
    """[tokens, width], some of the head's inputs."""


def slopes(model: Any, windows: Tensor, paths: list[str], seed: int, advance: Advance) -> Slopes:
    """One walk with gradients over `windows` [n, length].

    Args:
        model: as it is before quantization; its parameters need no gradient.
        windows: tokens.
        paths: linear layers.
        seed: of the drawn labels.
        advance: called with 1 after each window.
    """
    embedding = adapter_for(model.config).modules.embedding
    sums: dict[str, Slope] = {}
    generator = torch.Generator().manual_seed(seed)
    handles = [model.get_submodule(path).register_forward_hook(_adding(path, sums)) for path in paths]
    hidden: list[Tensor] = []
    each = -(-HEAD_TOKENS // len(windows))
    for window in windows:
        embedded, last = backward_from_drawn(model, window, generator)
        assert embedded.grad is not None
        _add(sums, embedding, window[None], embedded.grad)
        kept = last[0, SINK_TOKENS:].detach().float()
        hidden.append(kept[torch.linspace(0, len(kept) - 1, min(each, len(kept))).long()])
        advance(1)
    for handle in handles:
        handle.remove()
    count = len(windows) * (windows.shape[1] - SINK_TOKENS)
    means = {
        path: Slope(s.each / count, s.together / count, s.mean / count, [(x, g / count**0.5) for x, g in s.first])
        for path, s in sums.items()
    }
    frequency = torch.bincount(windows.flatten(), minlength=model.get_input_embeddings().weight.shape[0]).float()
    return Slopes(means, frequency / frequency.sum(), torch.cat(hidden))


def _add(sums: dict[str, Slope], path: str, inputs: Tensor, gradient: Tensor) -> None:
    """Count one window's inputs (features, or tokens) and gradients, [1, length, ...]."""
    g = gradient[0, SINK_TOKENS:].detach().float()
    x = inputs[0].detach()
    # copies: a part of a tensor would keep the whole of it, of every layer and window
    first = x[:SINK_TOKENS].to(torch.float32 if x.is_floating_point() else torch.long, copy=True)
    found = Slope(
        g.square().sum(0),
        g.sum(0).square(),
        x[SINK_TOKENS:].float().sum(0),
        [(first, gradient[0, :SINK_TOKENS].detach().to(torch.float32, copy=True))],
    )
    if path in sums:
        before = sums[path]
        found.each += before.each
        found.together += before.together
        found.mean += before.mean
        found.first = before.first + found.first
    sums[path] = found


def _adding(path: str, sums: dict[str, Slope]) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        output.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: _add(sums, path, args[0], gradient)
        )

    return hook


def losses_of_outer(model: Any, path: str, found: Slopes, candidates: Mapping[str, Grid]) -> dict[str, float]:
    """What embedding or head lose on each grid; one tensor that is both loses both."""
    modules = adapter_for(model.config).modules
    tied = bool(model.config.tie_word_embeddings)
    weight = model.get_submodule(path).weight.detach().float()
    losses = {}
    for name, grid in candidates.items():
        error = error_of(weight, grid, None)
        total = 0.0
        if path == modules.embedding:
            total += loss_of_embedding(error, found.frequency.to(error.device), found.modules[path])
        if path == modules.head or tied:
            total += loss_of_head(weight, error, found.hidden)
        losses[name] = total
    return losses
