"""By which figure quality is judged, and how the runs stand by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from compress.sweep.pareto import front, middle
from compress.sweep.points import Point


@dataclass(frozen=True)
class Quality:
    """A figure of quality; smaller is better."""

    name: str
    """Its key in report.json."""
    title: str
    short: str


HELD_OUT = Quality("kl_to_teacher", "KL to the original, held-out text", "KL")
QUALITIES = (
    HELD_OUT,
    Quality("second_kl_to_teacher", "KL to the original, other text", "KL, other text"),
    Quality("ppl", "perplexity, held-out text", "perplexity"),
)


@dataclass(frozen=True)
class Standing:
    """How the runs stand in quality, size and, where it was measured, speed."""

    front: list[int]
    """Those that no other beats in everything."""
    middle: int | None
    """The one of them nearest to the best of everything."""


def rows(points: Sequence[Point], quality: Quality) -> list[tuple[float, ...]]:
    """Quality, bytes and milliseconds of every point; without the last if no point has it."""
    timed = any(point.milliseconds is not None for point in points)
    pace = [math.nan if point.milliseconds is None else point.milliseconds for point in points]
    return [(point.figure(quality.name), point.bytes, *[ms] * timed) for point, ms in zip(points, pace, strict=True)]


def standing(points: Sequence[Point], quality: Quality) -> Standing:
    """Only what was verified can be recommended, or can beat another."""
    found = [
        row if point.verified else (math.nan,) * len(row)
        for row, point in zip(rows(points, quality), points, strict=True)
    ]
    best = front(found)
    return Standing(best, middle(found, best))
