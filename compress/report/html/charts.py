"""What each chart of the page shows. Figures that are not finite are said in words, never drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compress.report.html.drawing import BAD, FIRST, INK, LINE, SECOND, SOFT, WIDTH, canvas
from compress.report.html.markup import short

ROW = 17
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
    mark: tuple[float, str] | None = None,
) -> str:
    """Rows of horizontal bars from zero, one row per stage, each bar with its figure at the end.

    Args:
        name: of the drawing.
        label: for who cannot see it.
        rows: name and bars of each row, from the top.
        mark: a value to draw a line at, and what it is.
    """
    finite = [bar.value + bar.error for _, group in rows for bar in group if math.isfinite(bar.value + bar.error)]
    longest = max([*finite, mark[0] if mark else 0.0, 0.0]) or 1.0
    count = sum(len(group) for _, group in rows)
    gap = 0.6
    with canvas(name, ROW * (count + gap * len(rows)) + (26 if mark else 8)) as chart:
        axes = chart.axes()
        y, ticks = 0.0, []
        for _, group in rows:
            ticks.append(y + (len(group) - 1) / 2)
            for bar in group:
                drawn = bar.value if math.isfinite(bar.value) else 0.0
                (patch,) = axes.barh(y, drawn, height=0.78, color=bar.colour)
                chart.hint(patch, bar.hint)
                end = drawn
                if math.isfinite(bar.error) and bar.error > 0 and math.isfinite(bar.value):
                    axes.plot([drawn - bar.error, drawn + bar.error], [y, y], color=INK, linewidth=1.2)
                    end += bar.error
                axes.annotate(
                    bar.text, (end, y), (5, 0), textcoords="offset points", va="center_baseline", color=INK, fontsize=11.5
                )
                y += 1
            y += gap
        if mark:
            axes.axvline(mark[0], color=SOFT, linewidth=1.2, linestyle=(0, (3, 3)))
            right = mark[0] > longest / 2
            axes.annotate(
                mark[1], (mark[0], y - 0.35), (-4 if right else 4, 0), textcoords="offset points", fontsize=11.5,
                color=SOFT, va="center_baseline", ha="right" if right else "left",
            )  # fmt: skip
        axes.axvline(0, color=LINE, linewidth=1)
        axes.set_yticks(ticks, [short(row) for row, _ in rows])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_xticks([])
        axes.set_xlim(0, longest * 1.36)
        axes.set_ylim(y - gap / 2 + (0.6 if mark else -0.1), -0.6)
        return chart.svg(label)


def training(name: str, label: str, curve: Sequence[Mapping[str, float]], stride: int) -> str:
    """Loss per step with its running mean, and the learning rate below on the same steps.

    Args:
        name: of the drawing.
        label: for who cannot see it.
        curve: points with `loss` and `rate`.
        stride: steps from one point to the next.
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
        below.plot(steps, rates, color=SECOND, linewidth=2, marker=marker)
        if min(losses) > 0 and max(losses) > 30 * min(losses):
            above.set_yscale("log")
        else:
            above.locator_params(axis="y", nbins=5)
        below.set_ylim(0, max(rates) * 1.1 or 1.0)
        below.set_yticks([0, max(rates)] if max(rates) > 0 else [0])
        for axes, title in ((above, "loss"), (below, "rate")):
            axes.set_title(title, loc="left", fontsize=12, color=SOFT, pad=4)
            axes.grid(axis="y", color=LINE, linewidth=1)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        above.tick_params(axis="x", labelbottom=False)
        below.set_xlabel("step", color=SOFT, fontsize=12)
        below.locator_params(axis="x", nbins=6, integer=True)
        if len(points) == 1:
            above.set_xlim(steps[0] - 1, steps[0] + 1)
            below.set_xticks(steps)
        chart.points(above, steps, losses, [f"step {s}: loss {x:.4g}, rate {r:.3g}" for s, x, r in points])
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
        axes.set_xlabel("layer", color=SOFT, fontsize=12)
        return chart.svg(label)


def by_layer(errors: Mapping[str, float]) -> tuple[list[int], list[str], dict[tuple[int, str], tuple[str, float]]]:
    """Layers, projections, and (layer, projection) -> (weight's name, error). Weights outside the layers are left out."""
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


def heatmap(name: str, label: str, errors: Mapping[str, float]) -> str:
    """Layers x projections; the fuller the colour, the larger the error. Each cell says its figure in per cent."""
    from matplotlib.patches import Rectangle

    layers, columns, cells = by_layer(errors)
    finite = [error for _, error in cells.values() if math.isfinite(error)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    row = 20 if len(layers) <= 40 else 15
    turned = len(columns) > 5 or any(len(column) > 9 for column in columns)
    written = WIDTH / (len(columns) + 1) >= 34
    with canvas(name, row * len(layers) + (62 if turned else 30)) as chart:
        axes = chart.axes()
        for (layer, column), (weight, error) in cells.items():
            x, y = columns.index(column), layers.index(layer)
            strength = (error - low) / (high - low) if high > low else 0.5
            known = math.isfinite(error)
            alpha = 0.07 + 0.55 * strength if known else 0.6
            cell = Rectangle((x + 0.03, y + 0.05), 0.94, 0.9, facecolor=FIRST if known else BAD, alpha=alpha, linewidth=0)
            axes.add_patch(cell)
            chart.hint(cell, f"{weight}: {100 * error:.2f}%")
            if written:
                axes.text(
                    x + 0.5, y + 0.5, f"{100 * error:.1f}", ha="center", va="center_baseline",
                    fontsize=10.5 if row > 16 else 9.5, color=INK,
                )  # fmt: skip
        axes.set_xlim(0, len(columns))
        axes.set_ylim(len(layers), 0)
        axes.set_yticks([y + 0.5 for y in range(len(layers))], [str(layer) for layer in layers])
        axes.xaxis.tick_top()
        axes.set_xticks(
            [x + 0.5 for x in range(len(columns))],
            [short(column.removesuffix("_proj"), 26) for column in columns],
            rotation=25 if turned else 0,
            ha="left" if turned else "center",
        )
        axes.set_ylabel("layer", color=SOFT, fontsize=12)
        return chart.svg(label)
