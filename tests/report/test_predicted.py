"""Predicted against measured, in every form of the report."""

from __future__ import annotations

from compress.report import format as form
from compress.report.html import render as render_html
from compress.report.markdown import render
from tests.report.sample import full


def test_rows_say_what_was_said_and_how_far_off_it_was() -> None:
    row = form.predicted_rows(full())[0]
    assert len(row) == len(form.PREDICTED_HEADER)
    assert row[0] == "prune" and row[1:4] == ("101.0 MB", "100.0 MB", "+1.0%")
    assert row[4:7] == ("2.1 GB", "1.9 GB", "+10.0%")
    assert row[7:] == ("31 s", "61 s", "-50.0%")


def test_artifacts_are_timed_where_they_were_not_remembered() -> None:
    report = full()
    row = form.predicted_rows(report)[-1]
    assert len(row) == len(form.PREDICTED_HEADER)
    assert row[0] == "artifact hf" and row[7:] == ("75 s", "50 s", "+50.0%")
    report["artifacts"][0]["cached"] = True
    assert form.predicted_rows(report)[-1][0] != "artifact hf"


def test_both_reports_have_the_section() -> None:
    for page in (render(full()), render_html(full())):
        assert "Predicted and measured" in page and "+10.0%" in page and form.PREDICTED_NOTE in page


def test_a_report_without_predictions_has_none() -> None:
    report = full()
    for part in (*report["stages"], *report["artifacts"]):
        del part["predicted"]
    assert "Predicted and measured" not in render(report) + render_html(report)
