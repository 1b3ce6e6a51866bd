"""The report on disk is JSON that any parser reads, whatever went wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path

from compress.export.verify import RoundTrip
from compress.report.settings import Report
from compress.report.write import finite, write_reports


def test_a_failed_artifact_is_still_json(tmp_path: Path) -> None:
    told = RoundTrip.failed("the runtime cannot run it").as_dict()
    assert math.isinf(told["mean_kl"])
    report = {"artifacts": [told], "curve": ({"loss": float("nan")}, 1.5)}
    write_reports(report, tmp_path, Report(markdown=False, html=False))

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    read = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert read["artifacts"][0]["mean_kl"] is None and read["curve"] == [{"loss": None}, 1.5]


def test_numbers_and_words_stay() -> None:
    kept = {"a": [1, 2.5, True, None, "inf"]}
    assert finite(kept) == kept
