"""What each chart of the page shows. Figures that are not finite are said in words, never drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compress.report.html.drawing import BAD, FIRST, INK, LINE, SECOND, SOFT, TEXT_SIZE, WIDTH, Canvas, canvas
from compress.report.html.markup import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW = 18
"""Height of one bar."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Order in which the commonest projections compute; others follow as they come."""


@dataclass(frozen=True)
class Bar:
    """One bar: how long, what it says at its end and when pointed at, and how sure it is."""

    value: float
    text: str
    hint: str
    colour: str = FIRST
    error: float = 0.0


def bars(
    name: str,
    label: str,
    rows: Sequence[tuple[str, Sequence[Bar]]],
    *,
    room: int = 1,
    mark: tuple[float, str] | None = None,
) -> str:
    """Rows of horizontal bars from zero, one row per stage, each bar with its figure at the end.

    Args:
        name: of the drawing.
        label: for who cannot see it.
        rows: name and bars of each row, from the top.
        room: bars a row is high, so that the rows of two charts side by side are on one line.
        mark: a value to draw a line at, and what it is.
    """
    if not rows:
        return ""
    finite = [bar.value + bar.error for _, group in rows for bar in group if math.isfinite(bar.value + bar.error)]
    longest = max([*finite, mark[0] if mark else 0.0, 0.0]) or 1.0
    pitch = room + 0.6
    below = 1.0 if mark else 0.0
    with canvas(name, ROW * (pitch * len(rows) + below) + 4) as chart:
        axes = chart.axes()
        middles = [(index + 0.5) * pitch for index in range(len(rows))]
        for middle, (_, group) in zip(middles, rows, strict=True):
            for index, bar in enumerate(group):
                draw_bar(chart, axes, bar, middle + index - (len(group) - 1) / 2)
        axes.axvline(0, color=LINE, linewidth=1)
        if mark:
            axes.axvline(mark[0], color=SOFT, linewidth=1.2, linestyle=(0, (3, 3)))
            right = mark[0] > longest / 2
            where = (mark[0], len(rows) * pitch + below / 2)
            note(axes, mark[1], where, colour=SOFT, shift=-5 if right else 5)
        axes.set_yticks(middles, [short(row) for row, _ in rows])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_xticks([])
        axes.set_xlim(0, longest * 1.4)
        axes.set_ylim(len(rows) * pitch + below, 0)
        return chart.svg(label)


def draw_bar(chart: Canvas, axes: Axes, bar: Bar, y: float) -> None:
    """One bar; one that is not finite has no length, only its text."""
    end = bar.value if math.isfinite(bar.value) else 0.0
    (patch,) = axes.barh(y, end, height=0.8, color=bar.colour)
    chart.hint(patch, bar.hint)
    if math.isfinite(bar.value) and math.isfinite(bar.error) and bar.error > 0:
        axes.plot([max(0.0, end - bar.error), end + bar.error], [y, y], color=INK, linewidth=1.2)
        end += bar.error
    note(axes, bar.text, (end, y), colour=INK, shift=5)


def note(axes: Axes, text: str, where: tuple[float, float], *, colour: str, shift: float) -> None:
    """Text beside a point: to its right, or to its left for a negative shift."""
    side = "left" if shift > 0 else "right"
    axes.annotate(
        text,
        where,
        (shift, 0),
        textcoords="offset points",
        va="center_baseline",
        ha=side,
        color=colour,
        fontsize=TEXT_SIZE,
    )


def training(
    name: str,
    label: str,
    curve: Sequence[Mapping[str, float]],
    stride: int,
    validations: Sequence[Mapping[str, float]] = (),
) -> str:
    """Loss per step with its running mean, and the learning rate below on the same steps.

    Args:
        name: of the drawing.
        label: for who cannot see it.
        curve: points with `loss` and `rate`.
        stride: steps from one point to the next.
        validations: `step` and held-out `loss`, drawn as dots.
    """
    points = [
        (1 + index * stride, float(point["loss"]), float(point["rate"]))
        for index, point in enumerate(curve)
        if math.isfinite(point["loss"]) and math.isfinite(point["rate"])
    ]
    if not points:
        return ""
    steps, losses, rates = (list(column) for column in zip(*points, strict=True))
    many = len(points) >= 20
    marker = "o" if len(points) <= 3 else None
    with canvas(name, 290) as chart:
        grid = chart.figure.add_gridspec(2, 1, height_ratios=[2.6, 1])
        above = chart.axes(grid[0])
        below = chart.axes(grid[1], sharex=above)
        above.plot(steps, losses, color=FIRST, linewidth=1 if many else 2, alpha=0.45 if many else 1, marker=marker)
        if many:
            above.plot(steps, running_mean(losses), color=FIRST, linewidth=2.4)
        held_out = [(found["step"], found["loss"]) for found in validations if math.isfinite(found["loss"])]
        if held_out:
            above.plot(*zip(*held_out, strict=True), color=SECOND, linewidth=1, marker="o", markersize=4)
        below.plot(steps, rates, color=SECOND, linewidth=2, marker=marker)
        if min(losses) > 0 and max(losses) > 30 * min(losses):
            above.set_yscale("log")
        else:
            above.locator_params(axis="y", nbins=5)
        below.set_ylim(0, max(rates) * 1.1 or 1.0)
        below.set_yticks([0, max(rates)] if max(rates) > 0 else [0])
        for axes, title in ((above, "loss"), (below, "rate")):
            axes.set_title(title, loc="left", fontsize=TEXT_SIZE, color=SOFT, pad=4)
            axes.grid(axis="y", color=LINE, linewidth=1)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        above.tick_params(axis="x", labelbottom=False)
        below.set_xlabel("step", color=SOFT, fontsize=TEXT_SIZE)
        below.locator_params(axis="x", nbins=6, integer=True)
        if len(points) == 1:
            above.set_xlim(steps[0] - 1, steps[0] + 1)
            below.set_xticks(steps)
        chart.strips(above, steps, [f"step {s}: loss {x:.4g}, rate {r:.3g}" for s, x, r in points])
        return chart.svg(label)


def running_mean(values: Sequence[float]) -> list[float]:
    """Mean over a tenth of the values around each; fewer at the ends."""
    half = max(1, len(values) // 20)
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def influence(name: str, label: str, values: Sequence[float], dropped: Sequence[int]) -> str:
    """How much each layer changes what passes through it; dropped layers in the warning colour."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    with canvas(name, 190) as chart:
        axes = chart.axes()
        for layer, value in enumerate(values):
            said = f"layer {layer}: {value:.3f}" + (", dropped" if layer in dropped else "")
            drawn = value if math.isfinite(value) else 0.0
            (patch,) = axes.bar(layer, drawn, width=0.8, color=BAD if layer in dropped else FIRST)
            chart.hint(patch, said)
        axes.grid(axis="y", color=LINE, linewidth=1)
        axes.set_axisbelow(True)
        axes.set_xlim(-0.6, len(values) - 0.4)
        axes.set_ylim(min(0.0, *finite), max(0.0, *finite) * 1.05 or 1.0)
        axes.locator_params(axis="y", nbins=4)
        step = math.ceil(len(values) / 15)
        axes.set_xticks(range(0, len(values), step))
        axes.set_xlabel("layer", color=SOFT, fontsize=TEXT_SIZE)
        return chart.svg(label)


def by_layer(errors: Mapping[str, float]) -> tuple[list[int], list[str], dict[tuple[int, str], tuple[str, float]]]:
    """Layers, projections, and (layer, projection) -> (weight's name, error); weights outside layers are left out."""
    parsed = []
    for name, error in errors.items():
        match = re.match(r"\D*?\.?(\d+)\.(.+)$", name)
        if match:
            parsed.append((int(match[1]), match[2], name, error))
    last = {rest: rest.rpartition(".")[2] for _, rest, _, _ in parsed}
    # GPT-2 calls two projections of a layer c_proj: then the whole name is needed
    heading = {rest: end if list(last.values()).count(end) == 1 else rest for rest, end in last.items()}
    cells = {(layer, heading[rest]): (name, error) for layer, rest, name, error in parsed}
    columns = list(dict.fromkeys(heading[rest] for _, rest, _, _ in parsed))
    known = [column for column in PROJECTIONS if column in columns]
    return sorted({layer for layer, _ in cells}), known + [c for c in columns if c not in known], cells


def in_per_cent(errors: Mapping[str, float]) -> Mapping[str, tuple[str, str]]:
    """What the cells of errors say: tensor -> what is written, what is told on touch."""
    return {name: (f"{100 * error:.1f}", f"{name}: {100 * error:.2f}%") for name, error in errors.items()}


def heatmap(
    name: str, label: str, errors: Mapping[str, float], words: Mapping[str, tuple[str, str]] | None = None
) -> str:
    """Layers x projections; the fuller the colour, the larger the figure. Each cell says `words`, by default its figure
    in per cent."""
    from matplotlib.patches import Rectangle

    words = words or in_per_cent(errors)
    layers, columns, cells = by_layer(errors)
    finite = [error for _, error in cells.values() if math.isfinite(error)]
    if not finite:
        return ""
    low, spread = min(finite), max(finite) - min(finite)
    row = 19 if len(layers) <= 48 else 14
    headings = [short(c.removesuffix("_proj") if c in PROJECTIONS else c, 24) for c in columns]
    # a character is about 7 units wide
    turned = 7 * max(map(len, headings)) > 0.9 * WIDTH / (len(columns) + 1)
    written = WIDTH / (len(columns) + 1) >= 30
    with canvas(name, row * len(layers) + 30 + (3.5 * max(map(len, headings)) if turned else 0)) as chart:
        axes = chart.axes()
        for (layer, column), (weight, error) in cells.items():
            x, y = columns.index(column), layers.index(layer)
            known = math.isfinite(error)
            strength = (error - low) / spread if known and spread > 0 else 0.5
            colour, alpha = (FIRST, 0.07 + 0.55 * strength) if known else (BAD, 0.6)
            cell = Rectangle((x + 0.03, y + 0.05), 0.94, 0.9, facecolor=colour, alpha=alpha, linewidth=0)
            axes.add_patch(cell)
            text, hint = words[weight]
            chart.hint(cell, hint)
            if written:
                size = 11 if row > 16 else 9.5
                axes.text(x + 0.5, y + 0.5, text, ha="center", va="center_baseline", fontsize=size, color=INK)
        axes.set_xlim(0, len(columns))
        axes.set_ylim(len(layers), 0)
        axes.set_yticks([y + 0.5 for y in range(len(layers))], [str(layer) for layer in layers])
        axes.xaxis.tick_top()
        axes.set_xticks([x + 0.5 for x in range(len(columns))], headings)
        if turned:
            axes.tick_params(axis="x", labelrotation=28)
            for heading in axes.get_xticklabels():
                heading.set_horizontalalignment("left")
                heading.set_rotation_mode("anchor")
        axes.set_ylabel("layer", color=SOFT, fontsize=TEXT_SIZE)
        return chart.svg(label)
