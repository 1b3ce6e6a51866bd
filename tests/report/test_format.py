"""Figures as people read them, and the Markdown made of them."""

from __future__ import annotations

import re

import pytest

from compress.report import format as form
from compress.report import markdown
from tests.report.sample import bare, full


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (98_304_512, "98.3 MB"), (2.5e9, "2.5 GB"), (1.4e12, "1400.0 GB")],
)
def test_size(count: float, said: str) -> None:
    assert form.size(count) == said


@pytest.mark.parametrize(("count", "said"), [(7, "7"), (1500, "1.5k"), (134_515_008, "134.5M"), (70e9, "70.0B")])
def test_number(count: float, said: str) -> None:
    assert form.number(count) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "0 s"),
        (99.4, "99 s"),
        (99.7, "1 min 40 s"),
        (119.7, "2 min 00 s"),
        (2750, "45 min 50 s"),
        (7260, "121 min 00 s"),
    ],
)
def test_duration(seconds: float, said: str) -> None:
    assert form.duration(seconds) == said


def test_main_table_has_a_row_for_everything_measured() -> None:
    report = full()
    rows = form.main_table(report)
    assert [row[0] for row in rows] == ["original", "prune", "distill", "quant", "recover", "artifact hf"]
    assert all(len(row) == len(form.HEADER) for row in rows)
    assert rows[1] == ("prune", "36.44", "0.600", "54.9%", "0.850", "50.0M", "100.0 MB", "61 s")
    report["stages"][0]["cached"] = True
    assert form.main_table(report)[1][-1] == "61 s (stored)"
    report["artifacts"][0]["metrics"] = {}  # its context is shorter than the windows
    assert form.main_table(report)[-1] == ("artifact hf", "", "", "", "", "50.0M", "59.0 MB", "")
    report["artifacts"][0] |= {"verified": False, "loaded": False}
    assert len(form.main_table(report)) == 5


def test_verdicts() -> None:
    report = full()
    assert "reloaded in a fresh process" in form.verdicts(report)[0]
    report["artifacts"][0] |= {"verified": False, "error": "mean KL 2.3e-02"}
    assert form.verdicts(report) == ["hf: FAILED: mean KL 2.3e-02. Do not ship it."]
    report["left_out"] = {"gguf": "llama_cpp is missing."}
    assert form.verdicts(report)[1] == "gguf: LEFT OUT: llama_cpp is missing."


def test_speeds_need_both_sides() -> None:
    assert form.speeds(full()) == ["prefill 270 -> 540 tokens/s", "decode 22 -> 45 tokens/s"]
    assert form.speeds(bare()) == []


def test_task_rows() -> None:
    report = full()
    report["baseline"]["tasks"] = {"choices": {"acc": 0.42, "acc_stderr": 0.011}}
    report["final"]["tasks"] = {
        "choices": {"acc": 0.4, "samples": 1000.0},
        "sums": {"exact_match,strict": 0.1, "exact_match_stderr,strict": 0.02},
    }
    assert form.task_rows(report) == [
        ("choices acc", "0.420 ± 0.011", "0.400"),
        ("choices samples", "", "1000"),
        ("sums exact_match,strict", "", "0.100 ± 0.020"),
    ]
    assert form.task_rows(bare()) == []


def test_markdown_escapes_pipes() -> None:
    lines = markdown.table(("stage", "figure"), [("a|b", "1"), ("|", "||")]).splitlines()
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [3, 3, 3, 3]
    report = full()
    report["stages"][0]["name"] = "cut|down"
    assert "| cut\\|down |" in markdown.render(report)


@pytest.mark.parametrize("report", [full(), bare()], ids=["full", "bare"])
def test_markdown_tells_the_same(report: dict[str, object]) -> None:
    page = markdown.render(report)
    for row in form.main_table(report):
        assert f"| {' | '.join(row)} |" in page
    assert "python -m compress" in page
    assert "Held-out text, windows of 1024 tokens." in page


def test_artifacts_stand_beside_the_original_in_their_runtimes() -> None:
    rows = form.runtime_rows(full())
    assert [row[:2] for row in rows] == [
        ("original", "transformers"),
        ("the file it came in", "llama.cpp"),
        ("hf", "transformers"),
    ]
    assert all(len(row) == len(form.RUNTIME_HEADER) for row in rows)
    assert all(row[4].endswith("x") and row[6].endswith(" s") for row in rows[1:])
    report = full()
    report["artifacts"][0] |= {"metrics": {}, "speed": {"decode_tokens_per_second": 31.4}}
    assert form.runtime_rows(report)[-1] == ("hf", "transformers", "59.0 MB", "", "", "", "3.7 s", "", "31")
