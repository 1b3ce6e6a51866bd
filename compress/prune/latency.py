"""Widths for a decode latency measured on this machine.

The time of one decoded token is modelled as

    t(w) / t(dense) = [ f + (l / L) * (1 - f - sum_k s_k + sum_k s_k * w_k / W_k) ] * (1 - s_h + s_h * h / H)

f: what does not depend on depth (embedding, head); s_k: what neurons and heads take of the layers; s_h: what the
residual width takes of everything. Each is found by timing a model that has only about half of one kind, in turns
with the dense one, so that other work on the machine slows both. The widths found by the model are then built and timed
themselves, and where the time is off the goal is moved by as much, and solved for again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from compress.arch import Architecture, Shape, Widths
from compress.arch.shape import KINDS, Kind
from compress.errors import UserError
from compress.prune.plan import prefix
from compress.prune.surgery import pruned_model
from compress.runtime.cache import cache_of, with_cache

if TYPE_CHECKING:
    from compress.prune.target import Count
    from compress.stage import Advance

TURNS, STEPS, PROMPT = 5, 8, 16
"""Times each model is timed, tokens decoded each time, tokens of the prompt."""
ROUNDS = 3
CLOSE = 0.03
"""A measured fraction this near to the one asked for is good."""
REFUSED = 0.1
"""One this far above it is not what was asked for."""

Ratio = Callable[[Widths], float]
"""Measured time of a model of these widths, as a fraction of the dense one's."""


@dataclass(frozen=True)
class LatencyModel:
    """Parts of the dense model's time per decoded token."""

    full: Widths
    fixed: float
    parts: dict[Kind, float] = field(default_factory=dict)

    def __call__(self, widths: Widths) -> float:
        """Time as a fraction of the dense model's."""
        left = {kind: part * widths.of(kind) / self.full.of(kind) for kind, part in self.parts.items()}
        hidden, whole = left.pop("hidden", 0.0), self.parts.get("hidden", 0.0)
        within = sum(self.parts[kind] for kind in left)
        layer = max(0.0, 1 - self.fixed - within) + sum(left.values())
        return (self.fixed + layer * widths.layers / self.full.layers) * (1 - whole + hidden)


def fit_model(full: Widths, kinds: list[Kind], possible: Callable[[Widths], bool], ratio: Ratio) -> LatencyModel:
    """Time one model for each kind that may be cut.

    Args:
        full: of the dense model.
        kinds: those that may be cut.
        possible: whether the family's config can state widths.
        ratio: the clock.
    """
    half = max(1, full.layers // 2)
    fixed = 0.0
    if half < full.layers:
        share = half / full.layers
        fixed = (ratio(replace(full, layers=half)) - share) / (1 - share)
    parts: dict[Kind, float] = {}
    for kind in kinds:
        narrow = next((w for w in _narrowed(full, kind) if possible(w)), None)
        if kind != "layers" and narrow is not None:
            parts[kind] = max(0.0, (1 - ratio(narrow)) / (1 - narrow.of(kind) / full.of(kind)))
    fixed = min(max(fixed, 0.0), 1.0)
    # measured one by one, they may come to more than there is: then the dense model itself would take more than 1
    inside = sum(part for kind, part in parts.items() if kind != "hidden")
    most = min(1.0, (1 - fixed) / inside) if inside > 0 else 1.0
    return LatencyModel(full, fixed, {kind: part * (1 if kind == "hidden" else most) for kind, part in parts.items()})


def _narrowed(full: Widths, kind: Kind) -> list[Widths]:
    """About half of one kind, then ever more of it."""
    size = full.of(kind)
    return [replace(full, **{kind: size * eighths // 8}) for eighths in range(4, 8) if size * eighths // 8]


@dataclass(frozen=True)
class Solved:
    """Widths for a latency."""

    widths: Widths
    model: LatencyModel
    measured: float

    def facts(self, asked: float) -> dict[str, Any]:
        """For the report."""
        parts = {"fixed": self.model.fixed} | {str(kind): part for kind, part in self.model.parts.items()}
        return {"asked": asked, "predicted": self.model(self.widths), "measured": self.measured, "parts": parts}


def solve_latency(asked: float, model: LatencyModel, solve: Callable[[float, Count], Widths], ratio: Ratio) -> Solved:
    """Widths whose measured time is nearest to the fraction asked for.

    Args:
        asked: fraction of the dense model's time per token.
        model: what is expected of widths.
        solve: (fraction, what is counted) -> widths.
        ratio: the clock.

    Raises:
        UserError: nothing near it is in reach.
    """
    goal, tried = asked, dict[Widths, float]()
    for _ in range(ROUNDS):
        try:
            widths = solve(goal, model)
        except UserError:
            if not tried:
                raise
            break  # a moved goal may be out of reach where the one asked for is not
        if widths in tried or (widths == model.full and asked < 1):
            break  # the whole model is no answer to less of its time
        tried[widths] = ratio(widths)
        if abs(tried[widths] - asked) <= CLOSE:
            break
        goal = min(1.0, max(0.01, goal + asked - tried[widths]))
    if not tried:
        raise UserError(
            f"latency={asked} asks for less than the smallest cut saves: nothing would be removed.",
            "Ask for less, or leave the stage out.",
        )
    best = min(tried, key=lambda w: abs(tried[w] - asked))
    if tried[best] - asked > REFUSED:
        raise UserError(
            f"latency={asked} cannot be reached: the nearest model takes {tried[best]:.2f} of the original's time per "
            f"token on this machine; {model.fixed:.2f} of it does not depend on depth.",
            "Ask for less, or let layers bear more of it: share.layers=1 share.mlp=0.",
        )
    return Solved(best, model, tried[best])


class Clock:
    """Times decoding of pruned models against the dense one, turn by turn."""

    def __init__(self, model: Any, architecture: Architecture, advance: Advance) -> None:
        self.model, self.architecture, self.advance = model, architecture, advance
        self.dense_seconds = float("inf")

    @property
    def shape(self) -> Shape:
        """Of the dense model."""
        return self.architecture.shape(self.model.config)

    def possible(self, widths: Widths) -> bool:
        """Whether the family's config can state these."""
        try:
            self.architecture.check(self.model.config, widths)
        except UserError:
            return False
        return True

    def __call__(self, widths: Widths) -> float:
        """Median ratio of the times of neighbouring turns."""
        other = pruned_model(self.model, self.architecture, prefix(self.shape, widths))
        ratios = []
        for _ in range(TURNS):
            dense, pruned = decode_seconds(self.model), decode_seconds(other)
            self.dense_seconds = min(self.dense_seconds, dense)
            ratios.append(pruned / dense)
        self.advance(1)
        return median(ratios)


@torch.no_grad()
def decode_seconds(model: Any) -> float:
    """Fastest of some decoded tokens, one sequence with a cache."""
    ids = torch.arange(1, PROMPT + 1, device=model.device)[None]
    out = model(ids, use_cache=True, logits_to_keep=1)
    fastest = float("inf")
    for _ in range(STEPS):
        token = out.logits[:, -1:].argmax(-1)
        begin = time.perf_counter()
        out = model(token, **with_cache(model, cache_of(out)))
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - begin)
    return fastest


def cut_kinds(share: dict[str, float], stated: dict[Kind, float]) -> list[Kind]:
    """Kinds that a target may cut."""
    return [kind for kind in KINDS if share.get(kind, 0.0) > 0 or kind in stated]


def timings(kinds: list[Kind]) -> int:
    """Models timed at most: the units a `Clock` advances by."""
    return 1 + len(kinds) + ROUNDS
