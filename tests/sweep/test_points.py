"""Folders of runs become points: what varied, what failed, which artifact."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from pathlib import Path

import pytest

from compress.errors import UserError
from compress.sweep.points import collect
from compress.sweep.quality import HELD_OUT, QUALITIES, standing
from compress.sweep.table import cells, comma_separated, header, values
from compress.sweep.write import report_folder, write_sweep
from tests.sweep import sample


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sample.write(tmp_path / "sweep")
    return tmp_path / "sweep"


def test_what_varied(folder: Path) -> None:
    runs = collect(folder)
    assert [point.name for point in runs.points] == [str(i) for i in range(12)]
    assert runs.varied == ["stages.prune.keep", "quant@stages.quant"]
    assert runs.label(runs.points[4]) == "prune.keep=0.7 quant=qat_int8"
    assert runs.points[4].milliseconds == pytest.approx(1000 / runs.points[4].decode)


def test_failed_and_killed_runs_are_known(folder: Path) -> None:
    failed, killed = collect(folder).failures
    assert (failed.name, failed.problem) == ("12", "keep=0.01 leaves <nothing>.")
    assert "seed=1" in killed.command and "killed" in killed.problem


def test_of_the_same_command_the_last_counts(folder: Path) -> None:
    again = sample.run(3, 0.7, "int8") | {"seconds": 1.0}
    sample.place(folder / "3_2", again["command"].split()[3:], 3, report=again)
    os.utime(folder / "3_2" / "report.json", (1e10, 1e10))
    # a failure is over once the same command has finished
    late = sample.run(12, 0.01, "nf4")
    late["command"] = "python -m compress stages.prune.keep=0.01 quant@stages.quant=nf4 +pipeline=prune_distill"
    sample.place(folder / "12_2", late["command"].split()[3:], 12, report=late)
    runs = collect(folder)
    assert [point.name for point in runs.points][3] == "3_2" and len(runs.points) == 13
    assert [failure.name for failure in runs.failures] == ["13"]


def test_every_measured_artifact_is_a_point(folder: Path) -> None:
    file = folder / "2" / "report.json"
    report = json.loads(file.read_text())
    other = report["artifacts"][0] | {"name": "gguf", "bytes": 1234, "verified": False}
    report["artifacts"] += [other, other | {"name": "broken", "metrics": {}, "error": "it does not load"}]
    file.write_text(json.dumps(report))
    runs = collect(folder)
    points = {point.name: point for point in runs.points}
    assert points["2"].verified and points["2"].bytes == report["final"]["bytes"]
    assert points["2 gguf"].bytes == 1234 and not points["2 gguf"].verified and points["2 gguf"].decode is None
    assert "2 broken" not in points
    assert (runs.failures[0].name, runs.failures[0].problem) == ("2 broken", "it does not load")


def test_a_verified_artifact_without_a_perplexity_is_a_point_and_no_failure(folder: Path) -> None:
    """Its context is shorter than the windows: it has a size and a speed."""
    file = folder / "2" / "report.json"
    report = json.loads(file.read_text())
    speed = {"decode_tokens_per_second": 50.0}
    report["artifacts"].append(report["artifacts"][0] | {"name": "pte", "bytes": 1234, "speed": speed, "metrics": {}})
    file.write_text(json.dumps(report))
    runs = collect(folder)
    index = next(index for index, point in enumerate(runs.points) if point.name == "2 pte")
    point = runs.points[index]
    assert point.verified and (point.bytes, point.milliseconds) == (1234, 20.0)
    assert "2 pte" not in [failure.name for failure in runs.failures]
    shown = dict(zip(header(runs), cells(runs, point), strict=True))
    assert (shown["ppl"], shown["KL"], shown["size"], shown["ms/token"]) == ("", "", "1.2 kB", "20.0")
    assert all(index not in standing(runs.points, quality).front for quality in QUALITIES)
    write_sweep(folder)
    row = next(row for row in csv.DictReader((folder / "sweep.csv").open()) if row["run"] == "2 pte")
    assert (row["ppl"], row["bytes"], row["problem"]) == ("", "1234", "")
    assert "1.2 kB, quality not measured, 20.0 ms per token" in (folder / "sweep.html").read_text()


def test_what_is_not_verified_is_never_recommended(folder: Path) -> None:
    points = collect(folder).points
    for quality in QUALITIES:
        stood = standing(points, quality)
        assert 5 not in stood.front and stood.middle in stood.front
        best = min(range(12), key=lambda i: points[i].figures[quality.name])
        smallest = min((i for i in range(12) if i != 5), key=lambda i: (points[i].bytes, points[i].milliseconds))
        assert {best, smallest} <= set(stood.front)


def test_without_speeds_quality_and_size_decide(folder: Path) -> None:
    for file in folder.glob("*/report.json"):
        report = json.loads(file.read_text())
        del report["final"]["speed"]
        file.write_text(json.dumps(report))
    points = collect(folder).points
    assert len(standing(points, HELD_OUT).front) > 1
    assert "decode" not in write_sweep(folder)


def test_csv_is_what_the_reports_say(folder: Path) -> None:
    runs = collect(folder)
    stood = standing(runs.points, HELD_OUT)
    rows = list(csv.DictReader(io.StringIO(comma_separated(runs, stood.front))))
    assert len(rows) == 14
    final = json.loads((folder / "7" / "report.json").read_text())["final"]
    assert float(rows[7]["kl_to_teacher"]) == final["kl_to_teacher"]
    assert int(rows[7]["bytes"]) == final["bytes"]
    assert rows[7]["stages.prune.keep"] == "0.8" and rows[7]["quant@stages.quant"] == "qat_int8"
    assert rows[7]["command"] == runs.points[7].command and "torch=2.13.0" in rows[7]["versions"]
    assert [i for i in range(12) if rows[i]["pareto"] == "True"] == stood.front
    assert rows[12]["problem"] == "keep=0.01 leaves <nothing>."


@pytest.mark.parametrize("more", [0, 5])
def test_table_is_as_wide_as_its_heading(folder: Path, more: int) -> None:
    for number in range(more):
        report = sample.run(20 + number, 0.5, "nf4")
        report["command"] += f" some.setting{number}=1"
        sample.place(folder / str(20 + number), report["command"].split()[3:], 20 + number, report=report)
    runs = collect(folder)
    assert len(header(runs)) == (9 + 2 if not more else 9 + 1)
    for point in runs.points:
        assert len(cells(runs, point)) == len(values(runs, point)) == len(header(runs))


def test_report_mode(folder: Path, tmp_path: Path) -> None:
    said = report_folder(str(folder))
    assert said["status"] == 0 and "sweep.html" in said["message"]
    assert (folder / "sweep.html").is_file() and (folder / "sweep.csv").is_file()
    for wrong in (None, str(tmp_path / "nowhere"), str(tmp_path)):
        if wrong == str(tmp_path):
            (tmp_path / "sweep").rename(tmp_path.with_name(tmp_path.name + "_moved"))
        with pytest.raises(UserError, match="folder"):
            report_folder(wrong)


def test_a_folder_that_cannot_be_written_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(**_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("compress.preparation.tempfile.TemporaryFile", read_only)
    with pytest.raises(UserError, match=r"cannot write to .*Read-only"):
        report_folder(str(folder))


def test_files_of_others_are_passed_over(folder: Path) -> None:
    known = collect(folder)
    for name, content in (("a", "[1]"), ("b", "{"), ("c", "{}")):
        (folder / "foreign" / name).mkdir(parents=True)
        for file in ("report.json", "run.json"):
            (folder / "foreign" / name / file).write_text(content)
    assert collect(folder) == known
