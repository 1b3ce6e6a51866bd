"""Two figures of every run against each other, with the line that no run is below."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compress.report.html.drawing import FIRST, LINE, SOFT, TEXT_SIZE, canvas
from compress.sweep.pareto import front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

HEIGHT = 270
REFUSED = "refused"
"""Kind of a run that was not verified: it beats no other."""
LOGARITHMIC = 20
"""From this ratio of the largest to the smallest on, an axis counts in powers."""


@dataclass(frozen=True)
class Side:
    """One axis."""

    title: str
    values: Sequence[float]
    show: Callable[[float], str]
    """A value as the axis says it."""


def scatter(name: str, label: str, across: Side, up: Side, hints: Sequence[str], kinds: Sequence[str]) -> str:
    """Runs as dots, and the stairs of those that no other beats in both figures.

    Args:
        name: of the drawing.
        label: for who cannot see it.
        across: figure to the right, smaller is better.
        up: figure upwards, smaller is better.
        hints: what each run says when pointed at.
        kinds: class of each run's dot.
    """
    rows = list(zip(across.values, up.values, strict=True))
    shown = [index for index, row in enumerate(rows) if all(map(math.isfinite, row))]
    if not shown:
        return ""
    with canvas(name, HEIGHT) as chart:
        axes = chart.axes()
        axes.grid(color=LINE, linewidth=1)
        axes.set_axisbelow(True)
        bound(axes, axes.xaxis, [rows[index][0] for index in shown], across)
        bound(axes, axes.yaxis, [rows[index][1] for index in shown], up)
        proven = [row if kind != REFUSED else (math.nan, math.nan) for row, kind in zip(rows, kinds, strict=True)]
        stairs(axes, sorted(rows[index] for index in front(proven)))
        # those that matter lie on top
        for index in sorted(shown, key=lambda index: kinds[index] == "front"):
            chart.dot(axes, rows[index], hints[index], class_=f"dot {kinds[index]}", **{"data-run": str(index)})
        axes.set_xlabel(across.title, color=SOFT, fontsize=TEXT_SIZE)
        axes.set_title(up.title, loc="left", fontsize=TEXT_SIZE, color=SOFT, pad=6)
        return chart.svg(label)


def bound(axes: Axes, axis: Axis, values: Sequence[float], side: Side) -> None:
    """Limits with room for whole dots, and few labels in the reader's units."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = min(values), max(values)
    if low > 0 and high / low > LOGARITHMIC:
        room = (high / low) ** 0.08
        limits = low / room, high * room
        (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axis.set_minor_formatter(NullFormatter())
    else:
        room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        limits = low - room, high + room
        axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: side.show(value)))
    (axes.set_xlim if axis is axes.xaxis else axes.set_ylim)(*limits)


def stairs(axes: Axes, corners: Sequence[tuple[float, float]]) -> None:
    """From the top down to the best of each, and out to the right: below it no run lies."""
    if not corners:
        return
    right, top = axes.get_xlim()[1], axes.get_ylim()[1]
    x = [corners[0][0], *(corner[0] for corner in corners), right]
    y = [top, *(corner[1] for corner in corners), corners[-1][1]]
    axes.plot(x, y, drawstyle="steps-post", color=FIRST, linewidth=1.6, alpha=0.6)
