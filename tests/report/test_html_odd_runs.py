"""report.html of runs that are not the usual one: parts missing, doubled, failed or not finite."""

from __future__ import annotations

import pytest

from compress.report.html import render
from tests.report.parsed import CHARTS, SECTIONS, Page
from tests.report.sample import bare, figures, full, stage, trained


def test_a_run_without_optional_parts() -> None:
    parsed = Page(render(bare()))
    assert [name for name in parsed.ids if name in SECTIONS] == ["stages", "reproduce"]
    assert [name for name in parsed.ids if name.startswith("chart-")] == CHARTS[:4]
    assert "No artifact was written" in parsed.all_text()


def test_the_worst_tensors_are_named_in_order() -> None:
    from compress.report.html.errors import quantization

    stage = full()["stages"][2]
    details = stage["details"]
    details["output_error"]["model.layers.3.mlp.up_proj"] = 0.5
    details["output_error"]["model.layers.1.mlp.up_proj"] = float("nan")
    text = Page(quantization(2, stage)).all_text()
    listed = [text.index(name) for name in ("layer 1 mlp.up_proj", "layer 3 mlp.up_proj", "layer 4 self_attn.v_proj")]
    assert listed == sorted(listed)
    left = 0.5 / details["output_error_rtn"]["model.layers.3.mlp.up_proj"]
    assert f"{left:.2f}" in text and "plain rounding" in text


def test_a_quantizer_that_only_rounds_lists_its_weights() -> None:
    from compress.report.html.errors import quantization

    stage = full()["stages"][2]
    for name in ("output_error", "output_error_rtn"):
        del stage["details"][name]
    drawn = quantization(2, stage)
    text = Page(drawn).all_text()
    assert "chart-outputs2" not in drawn and "plain rounding" not in text
    assert text.index("layer 4 self_attn.v_proj") < text.index("layer 4 self_attn.q_proj")


def test_mixed_precision_shows_what_it_went_by() -> None:
    from compress.report.html.errors import quantization

    stage = full()["stages"][2]
    names = list(stage["details"]["relative_error"])
    stage["details"]["sensitivity"] = {
        name: {"q4_0": 10.0 ** -(3 + i % 4), "q8_0": 1e-9} for i, name in enumerate(names)
    } | {"lm_head": {"q4_0": 0.0}}
    stage["details"]["chosen"] = {name: {"grid": ("q4_0", "q8_0")[i % 2]} for i, name in enumerate(names)}
    drawn = quantization(2, stage)
    assert f"{names[1]}: q8_0; expected KL 1.0e-04 on q4_0, 1.0e-09 on q8_0" in drawn
    assert drawn.count("expected KL") == len(names) and 'id="chart-sensitivity2"' in drawn
    assert "chart-sensitivity" not in quantization(2, full()["stages"][2])


def test_what_was_removed_is_on_the_map() -> None:
    from compress.report.html.places import places

    drawn = places("p", "map", {0: [0, 2], 2: [1, 2]}, layers=3, groups=3)
    for said in (
        "layer 0, group 1: removed",
        "layer 0, group 2: kept",
        "layer 1, group 0: dropped with its layer",
        "layer 2, group 0: removed",
    ):
        assert said in drawn
    assert drawn.count("kept") == 4
    assert places("p", "map", {0: [0, 1], 2: [0, 1]}, layers=3, groups=2) == ""


def test_no_stages() -> None:
    Page(render(bare() | {"stages": []}))


def test_an_artifact_that_does_not_load() -> None:
    report = full()
    report["artifacts"][0] |= {
        "verified": False, "loaded": False, "error": "plain transformers cannot run it: no message", "metrics": {},
        "mean_kl": float("inf"), "max_kl": float("inf"), "first_difference": None,
    }  # fmt: skip
    text = Page(render(report)).all_text()
    assert "it does not load" in text and "artifact hf" not in text


def test_two_trainings_and_two_quantizers_have_charts_of_their_own() -> None:
    report = full()
    quant = report["stages"][2]
    report["stages"] += [quant | {"name": "again"}, stage("more", "distill", figures(0.1, 0.1), trained())]
    ids = Page(render(report)).ids
    assert {"chart-errors2", "chart-errors4", "chart-curve1", "chart-curve3", "chart-curve5"} <= set(ids)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_figures_that_are_not_finite(bad: float) -> None:
    report = full()
    report["stages"][0]["metrics"] |= {"kl_to_teacher": bad, "second_kl_to_teacher": bad, "kl_stderr": bad, "ppl": bad}
    report["stages"][1]["details"]["curve"][3]["loss"] = bad
    report["stages"][3]["details"]["curve"] = [{"loss": bad, "kl": bad, "ce": 0.0, "rate": 1e-3}]
    report["stages"][0]["details"]["layer_influence"][2] = bad
    report["stages"][2]["details"]["relative_error"]["model.layers.2.mlp.up_proj"] = bad
    page = render(report)
    svgs = [piece.partition("</svg>")[0] for piece in page.split("<svg")[1:]]
    assert not any("nan" in value or "inf" in value for _, name, value in Page(page).attributes if name in "dxy")
    text = Page(page).all_text()
    assert str(bad) in svgs[0]
    assert "The loss of 1 of 150 points is not finite" in text
    assert "Not finite: model.layers.2.mlp.up_proj." in text
    assert "chart-curve3" not in Page(page).ids
