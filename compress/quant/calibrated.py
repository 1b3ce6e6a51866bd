"""Quantization calibrated layer by layer, every layer on the inputs that the quantized layers before it really give.

Two streams of hidden states go through the model side by side, the original's and the quantized one's; only one layer's
activations are in memory. For each group of linear layers that share an input, with x the inputs the original gives
and y those of the quantized stream,

    H = E[y y^T]    C = E[x y^T]    W' = W + a (W (C - H) + D) (H + damping)^-1        a: `absorb`

W' is what the quantized layer should be, so that it gives the original's output on its own inputs; D = E[d y^T] adds
the drift d of the residual stream for the projections that write to it. Then scales are searched, W' is rounded with
error feedback, and scales and levels are refined in turns.

Sequential inputs and feedback: GPTQ (arXiv 2210.17323). Targets from the dense stream: as in
compensation after pruning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.arch import adapter_for
from compress.errors import UserError
from compress.grids import Grid, Scales, level_of, value_of
from compress.grids.int8 import fake_quantize
from compress.layerwise import EnoughSeen, Layers, batches, inputs_of
from compress.quant.fold import best_scale, edges
from compress.quant.gptq import Rounded, descend, feedback
from compress.quant.scales import refit, search
from compress.quant.stage import Algorithm, Scaling

FOLD_TOKENS = 4096
"""Tokens that the scales of the folds are searched on."""


@dataclass(frozen=True)
class Calibration:
    """How the error is measured and spread."""

    algorithm: Algorithm = Algorithm.gptq
    damping: float = 0.01
    absorb: float = 0.5
    rounds: int = 2
    """Turns of refitting scales and levels after the feedback."""
    first_token: float = 1.0
    """Weight of each window's first token, whose activations are massive, among the others."""
    scaling: Scaling = Scaling.none
    int8_inputs: bool = False
    """Linear layers round their inputs to INT8, a scale a token."""


@dataclass(frozen=True)
class Solved:
    """One linear layer on its grid."""

    levels: Tensor
    scales: Scales
    goal: Tensor
    """[out, in], between the levels: where training can go on."""
    error: float
    """tr(E H E^T) / tr(W H W^T) with E the difference to the original weight W: what its output has lost."""
    error_rtn: float
    """The same for plain rounding."""


Found = Callable[[str, Solved], None]


def weight_of(module: Any, conv1d: bool) -> Tensor:
    """The weight of a linear layer as [out, in]."""
    weight: Tensor = module.weight
    return weight.t() if conv1d else weight


@torch.no_grad()
def calibrate(
    student: Any,
    teacher: Any,
    grids: Mapping[str, Grid],
    windows: Tensor,
    settings: Calibration,
    found: Found,
    advance: Callable[[float], None],
) -> None:
    """Put the linear layers of `student` on their grids, in place.

    Args:
        student: dense at first.
        teacher: the model it should be like; the same layers.
        grids: path of a linear layer -> its grid.
        windows: calibration tokens [n, length].
        settings: how.
        found: told every layer as it is solved.
        advance: called with 1 for every layer of the model.
    """
    modules = adapter_for(student.config).modules
    s, t = Layers.of(student, windows), Layers.of(teacher, windows)
    x_s, x_t = s.embedded, t.embedded
    for index in range(len(s.calls)):
        linears = [path for path in modules.linears(index) if path in grids]
        shared = sharing_inputs(s, index, x_s, linears)
        if settings.scaling is not Scaling.none:
            fold_layer(s, index, x_s, grids, settings)
        wanted, next_t = _inputs_and_output(t, index, x_t, [group[0] for group in shared])
        writers = (modules.head_outputs(index), modules.neurons(index))
        drift = x_t - x_s
        with int8_inputs(student, linears if settings.int8_inputs else []):
            for group in shared:
                collected = _collect(s, index, x_s, group, wanted[group[0]], settings)
                # what the stream lacks is the projections' to make up for, a part of it each
                missing = _second(drift, collected) if group[0] in writers else None
                for path in group:
                    module: Any = student.get_submodule(path)
                    weight = weight_of(module, modules.conv1d).float()
                    dense = weight_of(teacher.get_submodule(path), modules.conv1d).float()
                    goal = target(weight, dense, collected, missing, settings)
                    solved = solve(weight, goal, collected.h, grids[path], settings)
                    value = value_of(solved.levels, solved.scales).to(module.weight.dtype)
                    module.weight.copy_(value.t() if modules.conv1d else value)
                    found(path, solved)
            x_s = torch.cat([s.run(index, x) for x in batches(x_s)])
        x_t = next_t
        advance(1)


@contextmanager
def int8_inputs(model: Any, paths: list[str]) -> Iterator[None]:
    """The layers at `paths` round their inputs, as they will when they run on INT8."""

    def rounding(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (fake_quantize(args[0]), *args[1:])

    handles = [model.get_submodule(path).register_forward_pre_hook(rounding) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def fold_layer(layers: Layers, index: int, hidden: Tensor, grids: Mapping[str, Grid], settings: Calibration) -> None:
    """Search and apply the scales of every fold of one layer, in place."""
    architecture = adapter_for(layers.model.config)
    modules, layer = architecture.modules, architecture.modules.layer(index)
    shape = architecture.shape(layers.model.config)
    found = edges(layers.model, layer, modules.folds, shape, modules.conv1d)
    few = hidden[: max(1, FOLD_TOKENS // hidden.shape[1])]
    # folding changes no input but by its own scale, so all can be seen before the first is applied
    inputs, _ = _inputs_and_output(layers, index, few, [path for path, _ in found])
    smooth = settings.scaling is Scaling.smooth
    for (path, edge), fold in zip(found, modules.folds, strict=True):
        on = {i: grids[f"{layer}.{name}"] for i, name in enumerate(fold.targets) if f"{layer}.{name}" in grids}
        if len(on) == len(fold.targets):
            seen = torch.cat(inputs[path]).flatten(0, 1)
            edge.apply(best_scale(edge, seen, on, smooth, settings.int8_inputs))


def sharing_inputs(layers: Layers, index: int, hidden: Tensor, linears: list[str]) -> list[list[str]]:
    """The linear layers of one layer in the order they run, those that read the same tensor together."""
    seen: list[tuple[Tensor, list[str]]] = []

    def look(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            if seen and seen[-1][0] is args[0]:
                seen[-1][1].append(path)
            else:
                seen.append((args[0], [path]))

        return hook

    handles = [layers.model.get_submodule(p).register_forward_pre_hook(look(p)) for p in linears]
    layers.run(index, hidden[:1])
    for handle in handles:
        handle.remove()
    return [group for _, group in seen]


@dataclass
class Collected:
    """Second moments of one group's inputs."""

    h: Tensor
    c: Tensor
    inputs: list[Tensor]
    weights: Tensor


def _inputs_and_output(
    layers: Layers, index: int, hidden: Tensor, paths: Sequence[str]
) -> tuple[dict[str, list[Tensor]], Tensor]:
    """Inputs of the layers at `paths`, batch by batch, and the stream after the whole layer."""
    inputs: dict[str, list[Tensor]] = {path: [] for path in paths}

    def keep(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, args: inputs[path].append(args[0])

    handles = [layers.model.get_submodule(path).register_forward_pre_hook(keep(path)) for path in inputs]
    after = torch.cat([layers.run(index, x) for x in batches(hidden)])
    for handle in handles:
        handle.remove()
    return inputs, after


def _collect(
    layers: Layers, index: int, hidden: Tensor, group: list[str], dense: list[Tensor], settings: Calibration
) -> Collected:
    """Run the quantized stream up to the group, and add up H and C."""
    with inputs_of(layers.model.get_submodule(group[0])) as seen:
        for x in batches(hidden):
            with suppress(EnoughSeen):
                layers.run(index, x)
    width = seen[0].shape[-1]
    h, c = (torch.zeros(width, width, device=hidden.device) for _ in range(2))
    length = hidden.shape[1]
    weights = torch.ones(length, device=hidden.device)
    weights[0] = settings.first_token
    for y, x in zip(seen, dense, strict=True):
        rows = y.float() * weights[: y.shape[1], None]
        h.addmm_(rows.flatten(0, 1).t(), y.float().flatten(0, 1))
        if settings.absorb:
            c.addmm_(x.float().flatten(0, 1).t(), rows.flatten(0, 1))
    count = hidden.shape[0] * float(weights.sum())
    if not bool(h.diagonal().isfinite().all()):
        raise UserError(
            f"the inputs of {group[0]} are not finite on the calibration text: the model overflows in {hidden.dtype}.",
            "Store its weights in bfloat16 or float32, or round to nearest (stages.quant.algorithm=rtn).",
        )
    return Collected(h / count, c / count if settings.absorb else h / count, seen, weights)


def _second(drift: Tensor, collected: Collected) -> Tensor:
    """D = E[d y^T], [width, inputs]."""
    total = torch.zeros(drift.shape[-1], len(collected.h), device=drift.device)
    for d, y in zip(batches(drift), collected.inputs, strict=True):
        rows = y.float() * collected.weights[:, None]
        total.addmm_(d.float().flatten(0, 1).t(), rows.flatten(0, 1))
    return total / (drift.shape[0] * float(collected.weights.sum()))


def damped(gram: Tensor, damping: float) -> Tensor:
    """`gram` with `damping` of its mean diagonal added to the diagonal; dead inputs get the mean itself."""
    h = gram.clone()
    diagonal = h.diagonal()
    mean = diagonal.mean()
    diagonal[diagonal == 0] = mean if bool(mean > 0) else 1.0
    diagonal.add_(damping * mean)
    return h


def target(
    weight: Tensor, dense: Tensor, collected: Collected, missing: Tensor | None, settings: Calibration
) -> Tensor:
    """W', in fp32 [out, in]; W itself where the system cannot be solved.

    Args:
        weight: W, scales folded in.
        dense: the original's, which goes with the inputs in `collected.c`.
        collected: second moments.
        missing: D, or None.
        settings: damping and the part to absorb.
    """
    if not settings.absorb:
        return weight
    shift = dense @ collected.c - weight @ collected.h
    if missing is not None:
        shift = shift + missing
    factor, failed = torch.linalg.cholesky_ex(damped(collected.h, max(settings.damping, 0.01)).double())
    if bool(failed):
        return weight
    moved = weight + settings.absorb * torch.cholesky_solve(shift.double().t(), factor).t().float()
    return moved if bool(moved.isfinite().all()) else weight


def solve(weight: Tensor, goal: Tensor, gram: Tensor, grid: Grid, settings: Calibration) -> Solved:
    """Round `goal` on `grid` by the algorithm of the settings; errors are told against `weight`, both [out, in]."""
    plain = grid.start(weight)
    rtn = level_of(weight, plain, grid)
    if settings.algorithm is Algorithm.rtn:
        scales, rounded = plain, Rounded(rtn, weight)
    else:
        scales = search(goal, grid, gram.diagonal())
        if settings.algorithm is Algorithm.search:
            rounded = Rounded(level_of(goal, scales, grid), goal)
        else:
            h = damped(gram, settings.damping)
            rounded = feedback(goal, gram, grid, scales, settings.damping)
            for _ in range(settings.rounds):
                rounded = descend(goal, rounded.levels, h, grid, scales)
                scales = refit(goal, rounded.levels, scales, h, grid)
    size = _energy(weight, gram).clamp_min(1e-30)
    error = _energy(value_of(rounded.levels, scales) - weight, gram) / size
    error_rtn = _energy(value_of(rtn, plain) - weight, gram) / size
    return Solved(rounded.levels, scales, rounded.goal, float(error), float(error_rtn))


def _energy(x: Tensor, gram: Tensor) -> Tensor:
    """tr(X H X^T)."""
    return ((x @ gram) * x).sum()
