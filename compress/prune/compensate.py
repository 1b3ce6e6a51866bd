"""Closed-form compensation of a pruned model, layer by layer, with what the layers before it really give.

For every layer that stays, its projections are solved by least squares. Those that read the residual stream learn
what the original read there from what is left of it (`compress.prune.readers`). The two that write to it, from the
heads and from the neurons, are solved so that the pruned model's stream follows the original's. Their inputs are
those of the pruned, already compensated model; targets are the original's outputs, plus a part `absorb` of the drift
that has built up in the stream (all of it would fit the noise of the text). Dropped layers are made up for by the
layers after them.

Least squares on the next projection: ZipLM (arXiv 2302.04089), FLAP (arXiv 2312.11983); sequential inputs: GPTQ
(arXiv 2210.17323), here with targets from the dense stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.arch import adapter_for
from compress.layerwise import EnoughSeen, Layers, already_known, batches, inputs_of, outputs_of, watching
from compress.prune.least_squares import fitted, token_weights
from compress.prune.readers import Normed, Readers

if TYPE_CHECKING:
    from compress.prune.plan import Plan
    from compress.stage import Advance


Streams = tuple[Tensor, ...]
"""The student's before the layer, then the original's: before it, what its attention adds, and after it."""
Batch = tuple[Tensor, Tensor, Tensor]
"""Inputs of a projection, what it should give, and the weights of the tokens."""


@dataclass(frozen=True)
class Fit:
    """How the least squares are weighted."""

    ridge: float = 0.3
    absorb: float = 0.75
    read_ridge: float = 0.3


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
    all_kept = len(kept) == t.embedded.shape[-1]
    x_s, x_t = s.embedded, t.embedded
    readers = Readers(student, teacher, plan, fit.read_ridge)
    for original in range(len(t.calls)):
        heads_t = teacher.get_submodule(modules.head_outputs(original))
        with watching(heads_t) as seen, readers.original(original) as read:
            next_t = torch.cat([t.run(original, x) for x in batches(x_t)])
        o_t = torch.cat([out for _, out in seen])
        del seen  # what the original's projections read is not needed beside it
        if original in plan.layers:
            index = plan.layers.index(original)
            streams = (x_t, o_t, next_t)
            narrowed = streams if all_kept else tuple(x[..., kept] for x in streams)
            x_s = _layer(s, index, x_s, narrowed, (readers, read), fit)
        x_t = next_t
        advance(1)
    if not adapter_for(teacher.config).shape(teacher.config).tied:
        norms = (model.get_submodule(modules.final_norm) for model in (student, teacher))
        readers.refit_head(*([norm(x) for x in batches(end)] for norm, end in zip(norms, (x_s, x_t), strict=True)))


def _layer(
    s: Layers, index: int, x_s: Tensor, teacher: Streams, reading: tuple[Readers, list[Normed]], fit: Fit
) -> Tensor:
    """Solve the projections of one layer, in the order in which they are computed; the stream after it."""
    modules = adapter_for(s.model.config).modules
    heads: Any = s.model.get_submodule(modules.head_outputs(index))
    neurons: Any = s.model.get_submodule(modules.neurons(index))

    readers, read_t = reading
    before_heads, before_neurons = (s.model.get_submodule(path) for path in modules.norms(index))
    readers.refit(index, 0, [before_heads(x) for x in batches(x_s)], read_t.pop(0))
    with inputs_of(heads) as attended:
        for x in batches(x_s):
            with suppress(EnoughSeen):
                s.run(index, x)
    streams = list(zip(batches(x_s), *map(batches, teacher), strict=True))
    _solve(heads, _of_heads(attended, streams, fit.absorb), fit.ridge, modules.conv1d)

    known = already_known(s.model, modules.head_outputs(index), attended, attention=True)
    with known, outputs_of(before_neurons) as normed:
        for x in batches(x_s):
            with suppress(EnoughSeen):
                s.run(index, x)
    readers.refit(index, 1, normed, read_t.pop())
    del normed

    known = already_known(s.model, modules.head_outputs(index), attended, attention=True)
    with known, watching(heads) as read, watching(neurons) as seen:
        outs = [s.run(index, x) for x in batches(x_s)]
    rest = [out.float() - mlp.float() for out, (_, mlp) in zip(outs, seen, strict=True)]
    del outs
    after_heads = zip(seen, read, rest, streams, strict=True)
    _solve(neurons, _of_neurons(after_heads, fit.absorb), fit.ridge, modules.conv1d)
    return torch.cat([(r + neurons(a).float()).to(x_s.dtype) for r, (a, _) in zip(rest, seen, strict=True)])


def _of_heads(attended: Iterable[Tensor], streams: Iterable[Streams], absorb: float) -> Iterator[Batch]:
    """What the heads' projection reads, and should give: the original's output, and a part of the drift."""
    for a, (x_s, x_t, o_t, _) in zip(attended, streams, strict=True):
        x, o = x_t.float(), o_t.float()
        yield a, o + absorb * (x - x_s.float()), token_weights(x + o)


def _of_neurons(
    after_heads: Iterable[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor, Streams]], absorb: float
) -> Iterator[Batch]:
    """The same for the neurons' projection; the drift is what is left once attention has made up for its part."""
    for (a, _), (_, o_s), rest, (x_s, x_t, o_t, next_t) in after_heads:
        drift = (x_t.float() + o_t.float()) - (x_s.float() + o_s.float())
        yield a, next_t.float() - (1 - absorb) * drift - rest, token_weights(next_t)


def _solve(module: Any, tokens: Iterable[Batch], ridge: float, conv1d: bool) -> None:
    """Refit `module` (and its bias, as the weight of a constant input)."""
    start = (module.weight.t() if conv1d else module.weight).float()
    has_bias = module.bias is not None
    if has_bias:
        start = torch.cat([start, module.bias.float()[:, None]], 1)
        tokens = ((torch.cat([a, torch.ones_like(a[..., :1])], -1), t, w) for a, t, w in tokens)
    solved = fitted(start, tokens, ridge)
    if has_bias:
        module.bias.copy_(solved[:, -1])
        solved = solved[:, :-1]
    module.weight.copy_(solved.t() if conv1d else solved)
