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

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from compress.arch import adapter_for
from compress.errors import UserError
from compress.folds import fold_layer
from compress.grids import Grid, value_of
from compress.layerwise import EnoughSeen, Layers, already_known, batches, inputs_and_output, inputs_of
from compress.moments import sum_of_products
from compress.quant.coupled import Outputs
from compress.quant.inputs import RoundedInputs
from compress.quant.scales import check_range
from compress.quant.solve import Calibration, Collected, Solved, solve, target
from compress.quant.stage import Activations, Scaling
from compress.train.norms import fuse_norms

DRIFT_TOKENS = 16384
"""Tokens that the original goes through too. C and D are small corrections, held back by a ridge: they need less text
than H, the curvature that all rounding follows."""


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
    outputs: dict[str, Outputs] | None = None,
) -> dict[str, float]:
    """Put the linear layers of `student` on their grids, in place.

    Args:
        student: dense at first.
        teacher: the model it should be like; the same layers.
        grids: path of a linear layer -> its grid.
        windows: calibration tokens [n, length].
        settings: how.
        found: told every layer as it is solved.
        advance: called with 1 for every layer of the model.
        outputs: what outputs of linear layers do to the answers, by path, where rows are rounded together; what is of
            no more use is taken out.

    Returns:
        The range of each layer's inputs, where these are rounded to a static one.
    """
    modules = adapter_for(student.config).modules
    for model in (student, teacher):
        fuse_norms(model)
    rounded = RoundedInputs(settings.activations)
    followed = windows[: followed_windows(windows)]
    s, t = Layers.of(student, windows), Layers.of(teacher, followed)
    x_s, x_t = s.embedded, t.embedded
    for index in range(len(s.calls)):
        linears = [path for path in modules.linears(index) if path in grids]
        shared = sharing_inputs(s, index, x_s, linears)
        if settings.scaling is not Scaling.none:
            # smoothing is for inputs that become INT8, be it in a runtime that comes later
            smooth = settings.scaling is Scaling.smooth
            int8 = smooth or settings.activations is not Activations.none
            fold_layer(s, index, x_s, grids, conv1d=modules.conv1d, smooth=smooth, int8_inputs=int8)
        wanted, next_t = inputs_and_output(t, index, x_t, [group[0] for group in shared])
        writers = (modules.head_outputs(index), modules.neurons(index))
        drift = x_t - x_s[: len(x_t)]
        with rounded.on(student, linears), ExitStack() as known:
            for group in shared:
                collected = _collect(s, index, x_s, group, wanted[group[0]], rounded, settings)
                # what the stream lacks is the projections' to make up for, a part of it each
                missing = None
                if settings.absorb and group[0] in writers:
                    drifts = batches(drift)
                    missing = sum_of_products(drifts, collected.inputs[: len(drifts)], settings.first_token)
                for path in group:
                    module: Any = student.get_submodule(path)
                    weight = weight_of(module, modules.conv1d).float()
                    dense = weight_of(teacher.get_submodule(path), modules.conv1d).float()
                    check_range(path, weight, grids[path])
                    goal = target(weight, dense, collected, missing, settings)
                    solved = solve(weight, goal, collected.h, grids[path], settings, (outputs or {}).pop(path, None))
                    found(path, solved)  # first: what it holds of W may be the model's own tensor
                    value = value_of(solved.levels, solved.scales).to(module.weight.dtype)
                    module.weight.copy_(value.t() if modules.conv1d else value)
                if group[0] in writers:
                    # nothing before this projection changes any more
                    attention = group[0] == writers[0]
                    known.enter_context(already_known(student, group[0], collected.inputs, attention))
            x_s = torch.cat([s.run(index, x) for x in batches(x_s)])
        x_t = next_t
        advance(1)
    return rounded.ranges


def followed_windows(windows: Tensor) -> int:
    """How many windows [n, length] the original goes through beside the quantized model: whole batches of them."""
    length = windows.shape[1]
    together = len(batches(windows)[0])
    return min(len(windows), -(-DRIFT_TOKENS // (length * together)) * together)


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


def _collect(
    layers: Layers,
    index: int,
    hidden: Tensor,
    group: list[str],
    dense: list[Tensor],
    rounded: RoundedInputs,
    settings: Calibration,
) -> Collected:
    """Run the quantized stream up to the group, and add up H and C."""
    with inputs_of(layers.model.get_submodule(group[0])) as seen:
        for x in batches(hidden):
            with suppress(EnoughSeen):
                layers.run(index, x)
    seen = rounded.settle(group, seen)
    of_followed, rest = seen[: len(dense)], seen[len(dense) :]
    followed = sum_of_products(of_followed, of_followed, settings.first_token)
    h = followed
    if rest:
        part = sum(map(len, of_followed)) / sum(map(len, seen))
        h = torch.lerp(sum_of_products(rest, rest, settings.first_token), followed, part)
    if not bool(h.diagonal().isfinite().all()):
        computed = str(hidden.dtype).removeprefix("torch.")
        hint = (
            "Store its weights in bfloat16 or float32" if computed == "float16" else "Look for outliers in its weights"
        )
        raise UserError(
            f"the inputs of {group[0]} are not finite on the calibration text: the model, or what lies on its grid of "
            f"it, overflows in {computed}.",
            f"{hint}, or round to nearest (stages.quant.algorithm=rtn).",
        )
    if not settings.absorb:
        return Collected(h, torch.zeros_like(h), followed, seen)
    # C - H as one sum: the difference keeps its digits in half precision, two large sums would not
    difference = [x - y for x, y in zip(dense, of_followed, strict=True)]
    return Collected(h, sum_of_products(difference, of_followed, settings.first_token), followed, seen)
