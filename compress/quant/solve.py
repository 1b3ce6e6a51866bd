"""One linear layer on its grid, from the second moments of its inputs.

    W' = W + a (W (C - H) + D) (H + damping)^-1

is what the layer should be (see `compress.quant.calibrated`); scales are then searched, W' is rounded with error
feedback, and levels and scales are refined in turns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.grids import Grid, Scales, level_of, value_of
from compress.quant.coupled import Outputs, together
from compress.quant.gptq import Rounded, descend, feedback
from compress.quant.scales import refit, search
from compress.quant.stage import Activations, Algorithm, Scaling

SILENT = 1e-30
"""Mean square of inputs below which they count as zeros."""
WELL_CONDITIONED = 0.05
"""Ridge from which single precision solves for W'."""


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
    """tr(E H E^T) / tr(W' H W'^T), E the difference to W', what W should be: what rounding costs its output."""
    error_rtn: float
    """The same for W rounded to nearest, against W."""
    weight_error: float
    """||Q - W|| / ||W||, W with the scales that were folded into it."""
    plain: Tensor
    """W, [out, in]."""


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
    # a layer that was switched off stays so; what inputs never reach can make up for nothing
    if not settings.absorb or not bool(weight.any()) or silent(collected.h):
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


def solve(
    weight: Tensor, goal: Tensor, gram: Tensor, grid: Grid, settings: Calibration, outputs: Outputs | None = None
) -> Solved:
    """Round `goal` on `grid` by the algorithm of the settings; `weight` is the plain one, both [out, in].

    With `outputs`, feedback and descent go through rows as well as columns (`compress.quant.coupled`).
    """
    gram = of_size_one(gram)
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
            held = None if outputs is None else outputs.held_back()
            if held is None:
                rounded, scales = _each_row_alone(goal, gram, h, grid, scales, settings)
            else:
                rounded, scales = together(goal, gram, h, held, grid, scales, settings.damping, settings.rounds)
    value = value_of(rounded.levels, scales)
    error = part_of(energy(value - goal, gram), energy(goal, gram))
    error_rtn = part_of(energy(value_of(rtn, plain) - weight, gram), energy(weight, gram))
    moved = part_of((value - weight).norm(), weight.norm())
    return Solved(rounded.levels, scales, rounded.goal, error, error_rtn, moved, weight)


def _each_row_alone(
    goal: Tensor, gram: Tensor, h: Tensor, grid: Grid, scales: Scales, settings: Calibration
) -> tuple[Rounded, Scales]:
    rounded = feedback(goal, gram, grid, scales, settings.damping)
    for _ in range(settings.rounds):
        rounded = descend(goal, rounded.levels, h, grid, scales)
        scales = refit(goal, rounded.levels, scales, h, grid)
    if settings.rounds:  # the last scales have not been rounded for yet
        rounded = descend(goal, rounded.levels, h, grid, scales)
    return rounded, scales


def silent(gram: Tensor) -> bool:
    """Whether inputs with this second moment are as good as none: squares below what fp32 divides by."""
    return not float(gram.diagonal().mean()) > SILENT


def of_size_one(gram: Tensor) -> Tensor:
    """`gram` with a mean diagonal between one and two, by a power of two: no bit of what follows changes; none of
    silent inputs."""
    if silent(gram):
        return torch.zeros_like(gram)
    mean = float(gram.diagonal().mean())
    return gram if not math.isfinite(mean) else gram * 2.0 ** -math.floor(math.log2(mean))


def part_of(lost: Tensor, whole: Tensor) -> float:
    """`lost` / `whole`; nothing lost of nothing is no loss."""
    return float(lost / whole) if float(whole) > 0 else 0.0


def energy(x: Tensor, gram: Tensor) -> Tensor:
    """tr(X H X^T)."""
    return ((x @ gram) * x).sum()
