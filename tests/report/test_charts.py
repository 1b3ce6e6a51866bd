"""Charts show the figures they are given: lengths, places and strengths are measured in the drawing."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from compress.report.html import charts
from compress.report.html.drawing import BAD, SECOND, VARIABLES
from compress.report.html.markup import legend
from compress.report.html.style import STYLE


def hinted(svg: str) -> dict[str, tuple[list[float], list[float], str]]:
    """What is said when pointed at -> x, y and style of what is pointed at."""
    found = {}
    for group in ET.fromstring(svg).iter("g"):
        title, path = group.find("title"), group.find("path")
        if title is not None and path is not None:
            numbers = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", path.get("d", ""))]
            found[title.text or ""] = (numbers[::2], numbers[1::2], path.get("style", ""))
    return found


def width(shape: tuple[list[float], list[float], str]) -> float:
    return max(shape[0]) - min(shape[0])


def height(shape: tuple[list[float], list[float], str]) -> float:
    return max(shape[1]) - min(shape[1])


def bar(value: float, said: str, error: float = 0.0) -> charts.Bar:
    return charts.Bar(value, said, said, error=error)


def test_bars_are_as_long_as_their_values() -> None:
    rows = [("a", [bar(1.0, "one"), bar(3.0, "three")]), ("b", [bar(0.0, "none"), bar(0.5, "half", 0.1)])]
    found = hinted(charts.bars("x", "label", rows))
    assert width(found["three"]) == pytest.approx(3 * width(found["one"]), rel=1e-3)
    assert width(found["half"]) == pytest.approx(0.5 * width(found["one"]), rel=1e-3)
    assert width(found["none"]) == 0
    assert len({min(shape[0]) for shape in found.values()}) == 1  # all start at zero
    tops = [min(found[said][1]) for said in ("one", "three", "none", "half")]
    assert tops == sorted(tops)


def test_rows_of_two_charts_are_on_one_line() -> None:
    names = ["a", "b", "c"]
    two = hinted(charts.bars("x", "label", [(n, [bar(1, n), bar(1, n + n)]) for n in names], room=2))
    one = hinted(charts.bars("y", "label", [(n, [bar(9, n)]) for n in names], room=2, mark=(5.0, "here")))
    for name in names:
        middle = (max(two[name][1]) + min(two[name + name][1])) / 2
        assert sum(one[name][1][:4]) / 4 == pytest.approx(middle, abs=1.5)


@pytest.mark.parametrize("values", [[0.0], [float("nan")], [float("inf"), 2.0], [1e-12], [1e15]])
def test_bars_of_any_value(values: list[float]) -> None:
    svg = charts.bars("x", "label", [(f"row {i}", [bar(v, f"bar {i}", v)]) for i, v in enumerate(values)])
    found = hinted(svg)
    assert len(found) == len(values)
    for index, value in enumerate(values):
        assert (width(found[f"bar {index}"]) > 0) == (0 < value < float("inf"))


def test_names_are_no_mathematics() -> None:
    assert ">$x_1$<" in charts.bars("x", "label", [("$x_1$", [bar(1.0, "$y^2$")])])


def test_no_rows_no_chart() -> None:
    assert charts.bars("x", "label", []) == ""


def test_curve_points_are_at_their_steps() -> None:
    curve = [{"loss": 4.0 - i, "rate": 1e-3} for i in range(4)]
    found = hinted(charts.training("x", "label", curve, stride=10))
    assert list(found) == [f"step {s}: loss {v}, rate 0.001" for s, v in ((1, 4), (11, 3), (21, 2), (31, 1))]
    strips = list(found.values())
    for left, right in pairwise(strips):
        assert max(left[0]) == pytest.approx(min(right[0]), abs=0.01)
    assert width(strips[1]) == pytest.approx(width(strips[2]), rel=1e-2)


@pytest.mark.parametrize(
    "curve",
    [
        [{"loss": 0.5, "rate": 0.0}],
        [{"loss": 0.5, "rate": 1e-3}] * 2,
        [{"loss": 0.0, "rate": 1e-3}] * 30,
        [{"loss": 10.0**-i, "rate": 1e-3} for i in range(25)],
        [{"loss": -1.0, "rate": 1e-3}, {"loss": 100.0, "rate": 1e-3}],
    ],
    ids=["one point", "two equal", "no loss at all", "logarithmic", "negative"],
)
def test_curves_of_any_shape(curve: list[dict[str, float]]) -> None:
    found = hinted(charts.training("x", "label", curve, stride=1))
    assert len(found) == len({point["loss"] for point in curve}) or len(found) == len(curve)
    assert all(width(shape) > 0 and height(shape) > 0 for shape in found.values())


def test_no_curve_without_a_finite_point() -> None:
    assert charts.training("x", "label", [], stride=1) == ""
    assert charts.training("x", "label", [{"loss": float("nan"), "rate": 1.0}], stride=1) == ""


def test_running_mean() -> None:
    values = [float(i % 2) for i in range(100)]
    smooth = charts.running_mean(values)
    assert len(smooth) == 100
    assert all(abs(value - 0.5) < 0.1 for value in smooth)
    assert charts.running_mean([3.0]) == [3.0]
    assert charts.running_mean([2.0] * 7) == [2.0] * 7


def test_influence_marks_what_was_dropped() -> None:
    found = hinted(charts.influence("x", "label", [0.4, 0.1, 0.2], [1]))
    assert list(found) == ["layer 0: 0.400", "layer 1: 0.100, dropped", "layer 2: 0.200"]
    heights = [height(shape) for shape in found.values()]
    assert heights[0] == pytest.approx(4 * heights[1], rel=1e-2)
    assert [VARIABLES[BAD] in shape[2] for shape in found.values()] == [False, True, False]
    assert charts.influence("x", "label", [], []) == ""


def test_heatmap_is_stronger_where_the_error_is_larger() -> None:
    errors = {
        f"model.layers.{layer}.self_attn.{p}_proj": 0.01 * (1 + layer + 3 * i)
        for layer in range(3)
        for i, p in enumerate("qk")
    }
    found = hinted(charts.heatmap("x", "label", errors))
    assert len(found) == 6
    strength = {}
    for said, (_, _, style) in found.items():
        opacity = re.search(r"opacity: ([\d.]+)", style)
        assert opacity
        strength[said] = float(opacity[1])
    order = sorted(strength, key=lambda said: float(said.split(": ")[1].rstrip("%")))
    values = [strength[said] for said in order]
    assert all(a < b for a, b in pairwise(values))
    assert min(found["model.layers.0.self_attn.q_proj: 1.00%"][0]) < min(
        found["model.layers.0.self_attn.k_proj: 4.00%"][0]
    )
    assert min(found["model.layers.0.self_attn.q_proj: 1.00%"][1]) < min(
        found["model.layers.2.self_attn.q_proj: 3.00%"][1]
    )


def test_heatmap_has_no_gaps_for_layers_left_out() -> None:
    found = list(hinted(charts.heatmap("x", "label", {"h.3.a": 0.1, "h.7.a": 0.2})).values())
    assert 0 < min(found[1][1]) - max(found[0][1]) < 0.2 * height(found[0])


def test_weights_are_found_by_layer_in_any_naming() -> None:
    layers, columns, cells = charts.by_layer(
        {"model.layers.10.mlp.down_proj": 1.0, "model.layers.2.self_attn.q_proj": 2.0}
    )
    assert (layers, columns) == ([2, 10], ["q_proj", "down_proj"])
    assert cells[10, "down_proj"] == ("model.layers.10.mlp.down_proj", 1.0)
    # two projections that end alike keep their whole name
    twins = {"transformer.h.0.attn.c_proj": 1.0, "transformer.h.0.mlp.c_proj": 2.0, "transformer.h.0.mlp.c_fc": 3.0}
    assert charts.by_layer(twins)[1] == ["attn.c_proj", "mlp.c_proj", "c_fc"]
    assert len(charts.by_layer(twins)[2]) == 3
    assert charts.by_layer({"lm_head": 1.0}) == ([], [], {})
    assert charts.heatmap("x", "label", {"lm_head": 1.0}) == ""
    assert len(hinted(charts.heatmap("x", "label", {"h.0.a": 1.0}))) == 1


def test_colours_come_from_the_page() -> None:
    svg = charts.bars("x", "label", [("a", [charts.Bar(1.0, "a", "a", SECOND, 0.5)])], mark=(1.0, "b"))
    assert not re.search(r"#[0-9a-f]{3,8}\b", svg)
    used = set(re.findall(r"var\((--[\w-]+)\)", svg + legend(("first", "x")) + STYLE))
    defined = re.findall(r"(--[\w-]+):", STYLE)
    assert used <= set(defined)
    assert len(defined) == 2 * len(set(defined))  # each has a light and a dark value


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(
    ("text", "paper"),
    [(t, p) for t in ("ink", "soft", "bad") for p in ("paper", "card")]
    + [("ink", "good-paper"), ("good", "good-paper"), ("ink", "bad-paper"), ("bad", "bad-paper")],
)
def test_contrast(text: str, paper: str, dark: bool) -> None:
    """At least 4.5, as WCAG 2 (1.4.3) asks of text."""
    block = STYLE.split("prefers-color-scheme: dark")[int(dark)]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    light, deep = sorted((luminance(colours[text]), luminance(colours[paper])), reverse=True)
    assert (light + 0.05) / (deep + 0.05) >= 4.5
