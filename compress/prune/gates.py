"""Importance by the gradients of gates: how much the loss moves when a group is scaled away.

    c_tj = x_tj * dL/dx_tj                 the gradient of a factor m_tj = 1 on group j in token t
    taylor: score_j = sqrt(E_windows[(sum_t c_tj)^2])         one factor for all tokens of a window
    fisher: score_j = sqrt(E_tokens[c_tj^2])                  one for every token

Molchanov et al., arXiv 1906.10771, section 3.2, and Theis et al., arXiv 1801.05787, section 2.2, where the mean square
is the diagonal of the Fisher information of the factors. A window holds hundreds of tokens in which a group matters or
does not: their signs cancel in the sum of a window, and a calibration text has few windows but many tokens.

L is the cross-entropy of a window with its own text. A residual channel has one factor for all norms that read the
stream.

Backward goes layer by layer: the forward pass of some windows keeps the inputs of the layers only, and each layer is
computed again when its gradient is due. One layer's activations and these windows' streams are all that is in memory.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.arch import Architecture
from compress.calibrate import SINK_TOKENS
from compress.layerwise import Layers, batches, embedded, watching
from compress.prune.plan import Scores
from compress.prune.statistics import Turning
from compress.prune.text_loss import losses

if TYPE_CHECKING:
    from compress.stage import Advance


def gate_scores(
    model: Any, architecture: Architecture, windows: Tensor, per_token: bool, turning: Turning, advance: Advance
) -> Scores:
    """Scores of every group inside the layers, and of the residual channels.

    Args:
        model: causal language model; its parameters stop requiring gradients.
        architecture: its family.
        windows: tokens [n, length].
        per_token: a factor for every token (fisher), not one for the window (taylor).
        turning: sees the streams go by: what layers are scored by needs no pass of its own.
        advance: called with the windows that are done.
    """

    def squares(contributions: Tensor) -> Tensor:
        """Of [windows, length, groups], what the factors' gradients add to the scores [groups]."""
        whole = contributions.flatten(0, 1) if per_token else contributions.sum(1)
        return whole.square().sum(0).cpu()

    shape, modules = architecture.shape(model.config), architecture.modules
    model.requires_grad_(False)
    layers = Layers.of(model, windows[:1])
    final = model.get_submodule(modules.final_norm)
    mlp = torch.zeros(shape.layers, shape.mlp)
    heads, queries = torch.zeros(shape.layers, shape.kv_heads), torch.zeros(shape.layers, shape.heads)
    hidden = torch.zeros(shape.hidden)
    for ids in batches(windows):
        streams = [embedded(model, ids)]
        with torch.no_grad():
            for layer in range(shape.layers):
                streams.append(layers.run(layer, streams[-1]))
                turning.add(layer, *(stream[:, SINK_TOKENS:] for stream in streams[-2:]))
        gradient, channels = _last(model, final, streams.pop(), ids)
        for layer in reversed(range(shape.layers)):
            places = [modules.neurons(layer), modules.head_outputs(layer)]
            gradient, products = _layer(layers, layer, streams.pop(), gradient, places, modules.norms(layer))
            neurons, entries, *normed = products
            mlp[layer] += squares(neurons)
            heads[layer] += squares(entries.view(*entries.shape[:2], shape.kv_heads, -1).sum(3))
            queries[layer] += squares(entries.view(*entries.shape[:2], shape.heads, -1).sum(3))
            channels += sum(normed)
        hidden += squares(channels)
        advance(len(ids))
    count = windows.numel() if per_token else len(windows)
    mlp, heads, queries, hidden = ((total / count).sqrt() for total in (mlp, heads, queries, hidden))
    return Scores(mlp=mlp, heads=heads, query_heads=queries, hidden=hidden)


def _last(model: Any, final: Any, stream: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of each window's mean loss at the stream that the final norm reads, and what its channels contribute."""
    with torch.enable_grad():
        x = stream.detach().requires_grad_()
        normed = final(x)
        leaf = normed.detach().requires_grad_()
        for place, window in enumerate(ids):
            for _, loss in losses(model, leaf[place], window):
                (loss / (len(window) - 1)).backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        (gradient,) = torch.autograd.grad(normed, x, leaf.grad)
    return gradient, _contribution(leaf.detach(), leaf.grad)


def _layer(
    layers: Layers, index: int, x: Tensor, gradient: Tensor, inputs: list[str], outputs: tuple[str, ...]
) -> tuple[Tensor, list[Tensor]]:
    """One layer forward and back: the gradient at its input, and x dL/dx of what goes into and comes out of modules."""
    with torch.enable_grad(), ExitStack() as stack:
        x = x.detach().requires_grad_()
        seen = [stack.enter_context(watching(layers.model.get_submodule(path))) for path in (*inputs, *outputs)]
        out = layers.run(index, x)
        values = [calls[0][0 if place < len(inputs) else 1] for place, calls in enumerate(seen)]
        first, *gradients = torch.autograd.grad(out, [x, *values], gradient)
    return first, [_contribution(value.detach(), grad) for value, grad in zip(values, gradients, strict=True)]


def _contribution(value: Tensor, gradient: Tensor) -> Tensor:
    """x dL/dx, [windows, length, features]."""
    return value.float() * gradient.float()
