"""First-order Taylor importance: how much the loss changes, to first order, when a group is scaled away.

    dL/dm_j = sum_t x_tj * dL/dx_tj        m_j = 1 a factor on group j, in every token of a window
    score_j = sqrt(E_windows[(dL/dm_j)^2])

(Molchanov et al., arXiv 1906.10771.) L is the cross-entropy of a window with its own text. A residual channel has one
factor for all norms that read the stream.

Backward goes layer by layer: a window's forward pass keeps the inputs of the layers only, and each layer is computed
again when its gradient is due. One layer's activations and one window's streams are all that is in memory.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.arch import Architecture
from compress.layerwise import Layers, watching
from compress.prune.importance import taylor
from compress.prune.plan import Scores
from compress.prune.text_loss import losses

if TYPE_CHECKING:
    from compress.stage import Advance


def taylor_scores(model: Any, architecture: Architecture, windows: Tensor, advance: Advance) -> Scores:
    """Scores of every group inside the layers, and of the residual channels.

    Args:
        model: causal language model; its parameters stop requiring gradients.
        architecture: its family.
        windows: tokens [n, length].
        advance: called with 1 after each window.
    """
    shape, modules = architecture.shape(model.config), architecture.modules
    model.requires_grad_(False)
    layers = Layers.of(model, windows)
    final = model.get_submodule(modules.final_norm)
    mlp = torch.zeros(shape.layers, shape.mlp)
    heads, queries = torch.zeros(shape.layers, shape.kv_heads), torch.zeros(shape.layers, shape.heads)
    hidden = torch.zeros(shape.hidden)
    for ids, embedded in zip(windows, torch.split(layers.embedded, 1), strict=True):
        streams = [embedded]
        with torch.no_grad():
            for layer in range(shape.layers):
                streams.append(layers.run(layer, streams[-1]))
        gradient, channels = _last(model, final, streams.pop(), ids)
        for layer in reversed(range(shape.layers)):
            places = [modules.neurons(layer), modules.head_outputs(layer)]
            gradient, products = _layer(layers, layer, streams.pop(), gradient, places, modules.norms(layer))
            neurons, entries, *normed = products
            mlp[layer] += neurons.square()
            heads[layer] += entries.view(shape.kv_heads, -1).sum(1).square()
            queries[layer] += entries.view(shape.heads, -1).sum(1).square()
            channels += sum(normed)
        hidden += channels.square()
        advance(1)
    means = (total / len(windows) for total in (mlp, heads, queries, hidden))
    mlp, heads, queries, hidden = map(taylor, means)
    return Scores(mlp=mlp, heads=heads, query_heads=queries, hidden=hidden)


def _last(model: Any, final: Any, stream: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the mean loss at the stream that the final norm reads, and what its channels contribute."""
    with torch.enable_grad():
        x = stream.detach().requires_grad_()
        normed = final(x)
        leaf = normed.detach().requires_grad_()
        for _, loss in losses(model, leaf[0], ids):
            (loss / (len(ids) - 1)).backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        (gradient,) = torch.autograd.grad(normed, x, leaf.grad)
    return gradient, _contribution(leaf.detach(), leaf.grad)


def _layer(
    layers: Layers, index: int, x: Tensor, gradient: Tensor, inputs: list[str], outputs: tuple[str, ...]
) -> tuple[Tensor, list[Tensor]]:
    """One layer forward and back: the gradient at its input, and dL/dm of what goes into and comes out of modules."""
    with torch.enable_grad(), ExitStack() as stack:
        x = x.detach().requires_grad_()
        seen = [stack.enter_context(watching(layers.model.get_submodule(path))) for path in (*inputs, *outputs)]
        out = layers.run(index, x)
        values = [calls[0][0 if place < len(inputs) else 1] for place, calls in enumerate(seen)]
        first, *gradients = torch.autograd.grad(out, [x, *values], gradient)
    return first, [_contribution(value.detach(), grad) for value, grad in zip(values, gradients, strict=True)]


def _contribution(value: Tensor, gradient: Tensor) -> Tensor:
    return (value.float() * gradient.float()).sum((0, 1)).cpu()
