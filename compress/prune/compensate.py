"""Closed-form compensation of a pruned model, layer by layer, with what the layers before it really give.

For every layer that stays, two projections are solved by least squares so that the pruned model's residual stream
follows the original's: the one that reads the heads and the one that reads the neurons. Inputs are those of the pruned,
already compensated model; targets are the original's outputs, plus a part `absorb` of the drift that has built up in
the stream (all of it would fit the noise of the text). Dropped layers are made up for by the layers after them.

Least squares on the next projection: ZipLM (arXiv 2302.04089), FLAP (arXiv 2312.11983); sequential inputs: GPTQ
(arXiv 2210.17323), here with targets from the dense stream.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.arch import adapter_for
from compress.layerwise import EnoughSeen, Layers, already_known, batches, inputs_of, watching
from compress.prune.least_squares import fitted, token_weights

if TYPE_CHECKING:
    from compress.prune.plan import Plan
    from compress.stage import Advance


@dataclass(frozen=True)
class Fit:
    """How the least squares are weighted."""

    ridge: float = 0.3
    absorb: float = 0.5


@torch.no_grad()
def compensate(student: Any, teacher: Any, plan: Plan, windows: Tensor, fit: Fit, advance: Advance) -> None:
    """Solve the projections of `student`, in place.

    Args:
        student: the pruned model.
        teacher: the model it was cut from.
        plan: how it was cut.
        windows: calibration tokens [n, length].
        fit: weights of the least squares.
        advance: called with 1 for every layer of the teacher.
    """
    s, t = Layers.of(student, windows), Layers.of(teacher, windows)
    modules = adapter_for(student.config).modules
    kept = torch.tensor(plan.hidden, device=t.embedded.device)
    x_s, x_t = s.embedded, t.embedded
    for original in range(len(t.calls)):
        heads_t = teacher.get_submodule(modules.head_outputs(original))
        with watching(heads_t) as seen:
            next_t = torch.cat([t.run(original, x) for x in batches(x_t)])
        o_t = torch.cat([out for _, out in seen])
        if original in plan.layers:
            index = plan.layers.index(original)
            reduced = (x_t[..., kept], o_t[..., kept], next_t[..., kept])
            x_s = _layer(s, index, x_s, reduced, fit)
        x_t = next_t
        advance(1)


def _layer(s: Layers, index: int, x_s: Tensor, teacher: tuple[Tensor, Tensor, Tensor], fit: Fit) -> Tensor:
    """Solve both projections of one layer; the stream after it."""
    x_t, o_t, next_t = teacher
    modules = adapter_for(s.model.config).modules
    conv1d = modules.conv1d
    heads: Any = s.model.get_submodule(modules.head_outputs(index))
    neurons: Any = s.model.get_submodule(modules.neurons(index))

    with inputs_of(heads) as attended:
        for x in batches(x_s):
            with suppress(EnoughSeen):
                s.run(index, x)
    drift = x_t.float() - x_s.float()
    _solve(
        heads, attended, o_t.float() + fit.absorb * drift, token_weights(x_t.float() + o_t.float()), fit.ridge, conv1d
    )

    known = already_known(s.model, modules.head_outputs(index), attended, attention=True)
    with known, watching(heads) as read, watching(neurons) as seen:
        outs = torch.cat([s.run(index, x) for x in batches(x_s)])
    o_s = torch.cat([out for _, out in read])
    rest = outs.float() - torch.cat([out for _, out in seen]).float()
    # what is left of the drift once attention has made up for its part
    drift = (x_t.float() + o_t.float()) - (x_s.float() + o_s.float())
    goal = next_t.float() - (1 - fit.absorb) * drift
    activations = [a for a, _ in seen]
    _solve(neurons, activations, goal - rest, token_weights(next_t), fit.ridge, conv1d)
    return (rest + torch.cat([neurons(a) for a in activations]).float()).to(x_s.dtype)


def _solve(module: Any, inputs: list[Tensor], targets: Tensor, weights: Tensor, ridge: float, conv1d: bool) -> None:
    """Refit `module` (and its bias, as the weight of a constant input) to give `targets` [windows, length, width]."""
    start = (module.weight.t() if conv1d else module.weight).float()
    has_bias = module.bias is not None
    if has_bias:
        start = torch.cat([start, module.bias.float()[:, None]], 1)
        inputs = [torch.cat([a, torch.ones_like(a[..., :1])], -1) for a in inputs]
    solved = fitted(start, inputs, batches(targets), batches(weights), ridge)
    if has_bias:
        module.bias.copy_(solved[:, -1])
        solved = solved[:, :-1]
    module.weight.copy_(solved.t() if conv1d else solved)
