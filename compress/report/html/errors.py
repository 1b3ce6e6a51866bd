"""What quantization moved: per-tensor errors as maps of layers x projections, and the tensors that suffer most."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from statistics import median
from typing import Any

from compress.report.html import charts
from compress.report.html.markup import bullets, esc, figure, figures, table

WORST = 10
"""Tensors in the list."""


def quantization(index: int, stage: Mapping[str, Any]) -> str:
    """How far each weight, and what it computes, is from what it was.

    `details` of the stage holds, by the tensor's path: `relative_error` of the weights; where the quantizer looked at
    what the layers compute, also `output_error`, and `output_error_rtn`, which plain rounding would have left.
    """
    details = stage["details"]
    weights: Mapping[str, float] = details["relative_error"]
    outputs: Mapping[str, float] = details.get("output_error") or {}
    rounded: Mapping[str, float] = details.get("output_error_rtn") or {}
    note = "The fullest colour is the largest error here, the palest the smallest. Layers as numbered at this stage."
    maps = [
        figure(
            f"chart-errors{index}",
            "Relative error of each weight, per cent",
            charts.heatmap(
                f"errors{index}", "Heat map: relative quantization error of every projection of every layer", weights
            ),
            f"‖W − Q(W)‖ / ‖W‖. {note}",
        ),
        figure(
            f"chart-outputs{index}",
            "Relative error of each output, per cent",
            charts.heatmap(f"outputs{index}", "Heat map: relative error of what every projection computes", outputs),
            f"Of what each layer computes on calibration text. {note}",
        ),
        sensitivity(f"sensitivity{index}", details),
    ]
    return (
        f"<h3>{esc(stage['name'])}: what rounding moved</h3>"
        + figures(*maps, f"<div>{bullets(sentences(details))}</div>")
        + worst(weights, outputs, rounded)
    )


def sensitivity(name: str, details: Mapping[str, Any]) -> str:
    """What mixed precision went by: what every tensor loses on the grid it takes worst, and the grid it was given."""
    losses: Mapping[str, Mapping[str, float]] = details.get("sensitivity") or {}
    chosen: Mapping[str, Mapping[str, Any]] = details.get("chosen") or {}
    most = {path: max(by_grid.values()) for path, by_grid in losses.items() if path in chosen}
    words = {
        path: (
            chosen[path]["grid"],
            f"{path}: {chosen[path]['grid']}; expected KL "
            + ", ".join(f"{value:.1e} on {grid}" for grid, value in losses[path].items()),
        )
        for path in most
    }
    levels = {path: math.log10(value) if value > 0 else -math.inf for path, value in most.items()}
    label = "Heat map: sensitivity of every projection of every layer, and the grid it was given"
    return figure(
        f"chart-{name}",
        "Sensitivity, and the grid given",
        charts.heatmap(name, label, levels, words),
        "The fuller, the more KL to the original the grid it takes worst would cost (logarithmic). "
        "Touch a cell for its figures.",
    )


def sentences(details: Mapping[str, Any]) -> list[str]:
    """What the maps do not say."""
    errors: Mapping[str, float] = details["relative_error"]
    finite = [(value, name) for name, value in errors.items() if math.isfinite(value)]
    said = []
    if finite:
        most, least = max(finite), min(finite)
        said.append(f"From {least[0]:.2%} ({least[1]}) to {most[0]:.2%} ({most[1]}).")
    broken = [name for name, value in errors.items() if not math.isfinite(value)]
    if broken:
        said.append(f"Not finite: {', '.join(broken[:5])}{' and more' if len(broken) > 5 else ''}.")
    left = shares(details.get("output_error") or {}, details.get("output_error_rtn") or {})
    if left:
        said.append(
            f"Of the error plain rounding would make in the outputs, {median(left.values()):.0%} is left "
            f"(median over the weights; from {min(left.values()):.0%} to {max(left.values()):.0%})."
        )
    if details.get("bits_per_weight"):
        said.append(f"{details['bits_per_weight']:.2f} bits per encoded weight, scales included.")
    if details.get("left_dense"):
        said.append(f"{len(details['left_dense'])} linear layers stayed dense: their shapes cannot run on this grid.")
    return said


def shares(outputs: Mapping[str, float], rounded: Mapping[str, float]) -> dict[str, float]:
    """Tensor -> its output error over that of plain rounding."""
    return {
        name: value / rounded[name]
        for name, value in outputs.items()
        if rounded.get(name) and math.isfinite(value) and math.isfinite(rounded[name])
    }


def worst(weights: Mapping[str, float], outputs: Mapping[str, float], rounded: Mapping[str, float]) -> str:
    """The tensors with the largest error: of the output where that is known, else of the weight itself."""
    ranked_by = outputs or weights

    def badness(name: str) -> float:
        # what is not finite is worse than any number
        return ranked_by[name] if math.isfinite(ranked_by[name]) else math.inf

    ranked = sorted(ranked_by, key=badness, reverse=True)
    left = shares(outputs, rounded)
    rows = [
        [
            re.sub(r"^\D*?(\d+)\.", r"layer \1 ", name),
            percent(weights.get(name)),
            *([percent(outputs.get(name))] if outputs else []),
            *([percent(rounded.get(name)), f"{left[name]:.2f}" if name in left else ""] if rounded else []),
        ]
        for name in ranked[:WORST]
    ]
    if len(ranked_by) < 2:
        return ""
    header = ["worst tensors", "error of the weight", *["of the output"] * bool(outputs)]
    header += ["of the output, plain rounding", "share left"] if rounded else []
    return table("Tensors with the largest error", header, rows)


def percent(value: float | None) -> str:
    """An error, or nothing."""
    return "" if value is None else f"{value:.2%}"
