"""One linear layer on its grid, from the second moments of its inputs.

    W' = W + a (W (C - H) + D) (H + damping)^-1

is what the layer should be (see `compress.quant.calibrated`); scales are then searched, W' is rounded with error
feedback, and levels and scales are refined in turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.grids import Grid, Scales, level_of, value_of
from compress.quant.gptq import Rounded, descend, feedback
from compress.quant.scales import refit, search
from compress.quant.stage import Activations, Algorithm, Scaling

COLUMNS = 256
"""Of a second moment, added up together."""
WELL_CONDITIONED = 0.05
"""Ridge from which single precision solves for W'."""
SINKS = 4
"""Positions at the start of a window whose activations may be massive (arXiv 2402.17762)."""


@dataclass(frozen=True)
class Calibration:
    """How the error is measured and spread."""

    algorithm: Algorithm = Algorithm.gptq
    damping: float = 0.01
    absorb: float = 0.5
    ridge: float = 1.0
    """Pull of W' towards W, relative to the mean diagonal of H: what is fitted must not be the noise of the text."""
    rounds: int = 2
    """Turns of refitting scales and levels after the feedback."""
    first_token: float = 1.0
    """Weight of each window's first token, whose activations are massive, among the others."""
    scaling: Scaling = Scaling.none
    activations: Activations = Activations.none
    """What linear layers do with their inputs."""


@dataclass(frozen=True)
class Solved:
    """One linear layer on its grid."""

    levels: Tensor
    scales: Scales
    goal: Tensor
    """[out, in], between the levels: where training can go on."""
    error: float
    """tr(E H E^T) / tr(W H W^T), E the difference to what the weight should be (W'): what rounding costs its output."""
    error_rtn: float
    """The same for W rounded to nearest, against W."""


@dataclass
class Collected:
    """Second moments of one group's inputs.

    H comes from all calibration text; C - H, and the H that belongs to it, from what the original goes through too.
    """

    h: Tensor
    lost: Tensor
    """C - H."""
    followed: Tensor
    """H of the same text as C."""
    inputs: list[Tensor]
    """The inputs y themselves, batch by batch."""


def sum_of_products(left: Sequence[Tensor], right: Sequence[Tensor], first_token: float) -> Tensor:
    """Mean of l r^T over tokens, fp32 [left width, right width].

    In the type of the activations (bf16 for fp16, whose range such sums leave), but for each window's first positions:
    their massive activations would drown what half precision can hold, and the other sums with them.

    Args:
        left: batches [windows, length, left width].
        right: batches [windows, length, right width].
        first_token: weight of each window's first token.
    """
    same = left is right
    total = torch.zeros(left[0].shape[-1], right[0].shape[-1], device=left[0].device)
    weights = torch.ones(SINKS, device=total.device)
    weights[0] = first_token
    count = 0.0
    for x, y in zip(left, right, strict=True):
        head = x[:, :SINKS].float() * weights[: x.shape[1], None]
        total.addmm_(head.flatten(0, 1).t(), y[:, :SINKS].float().flatten(0, 1))
        if x.shape[1] > SINKS:
            rest = [z[:, SINKS:].flatten(0, 1) for z in (x, y)]
            x_rest, y_rest = (z.bfloat16() if z.dtype is torch.float16 else z for z in rest)
            if same:
                _add_upper(total, x_rest)
            else:
                total += x_rest.t() @ y_rest
        count += x.shape[0] * (x.shape[1] - 1 + first_token)
    return (total.triu() + total.triu(1).t() if same else total) / count


def _add_upper(total: Tensor, rows: Tensor) -> None:
    """Add the part of rows^T rows that is not below its diagonal, block by block: little more than half the work."""
    for first in range(0, len(total), COLUMNS):
        part = slice(first, min(first + COLUMNS, len(total)))
        total[part, first:] += rows[:, part].t() @ rows[:, first:]


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
        dense: the original's, before scales were folded in.
        collected: second moments.
        missing: D, or None.
        settings: damping and the part to absorb.
    """
    if not settings.absorb:
        return weight
    shift = dense @ collected.lost + (dense - weight) @ collected.followed
    if missing is not None:
        shift = shift + missing
    # conditioned by the ridge: no worse than columns / ridge
    exact = torch.float32 if settings.ridge >= WELL_CONDITIONED else torch.float64
    factor, failed = torch.linalg.cholesky_ex(damped(collected.h, settings.ridge).to(exact))
    if bool(failed):
        return weight
    moved = weight + settings.absorb * torch.cholesky_solve(shift.to(exact).t(), factor).t().float()
    return moved if bool(moved.isfinite().all()) else weight


def solve(weight: Tensor, goal: Tensor, gram: Tensor, grid: Grid, settings: Calibration) -> Solved:
    """Round `goal` on `grid` by the algorithm of the settings; `weight` is the plain one, both [out, in]."""
    plain = grid.start(weight)
    rtn = level_of(weight, plain, grid)
    if settings.algorithm is Algorithm.rtn:
        goal = weight  # plain rounding makes up for nothing
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
            if settings.rounds:  # the last scales have not been rounded for yet
                rounded = descend(goal, rounded.levels, h, grid, scales)
    size = energy(weight, gram).clamp_min(1e-30)
    error = energy(value_of(rounded.levels, scales) - goal, gram) / size
    error_rtn = energy(value_of(rtn, plain) - weight, gram) / size
    return Solved(rounded.levels, scales, rounded.goal, float(error), float(error_rtn))


def energy(x: Tensor, gram: Tensor) -> Tensor:
    """tr(X H X^T)."""
    return ((x @ gram) * x).sum()
