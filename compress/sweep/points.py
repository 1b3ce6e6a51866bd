"""The runs of a folder as points: what each was told, and its quality, size and speed."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.report import format as form

RECORD = "run.json"
"""What a run of a sweep leaves when it starts and when it ends."""
BESIDE = ("output", "hydra.", "evaluate.", "report.")
"""Beginnings of settings that do not change what is made: where it goes, how it is measured and told."""


@dataclass(frozen=True)
class Point:
    """One artifact of one finished run."""

    folder: str
    """Of the run, below that of the sweep."""
    artifact: str
    """Its name where a run has several, and this is not the first."""
    command: str
    told: Mapping[str, str]
    """Every setting of the command."""
    figures: Mapping[str, Any]
    """ppl, kl_to_teacher and so on, as in report.json; null there is NaN here, what was not measured is missing."""
    bytes: float
    decode: float | None
    """Tokens per second, one sequence; None if it was not measured."""
    prefill: float | None
    seconds: float
    verified: bool

    @property
    def name(self) -> str:
        """Short: 3, or 3 gguf."""
        return f"{self.folder} {self.artifact}".strip()

    def figure(self, name: str) -> float:
        """NaN if it was not measured."""
        return float(self.figures.get(name, math.nan))

    @property
    def milliseconds(self) -> float | None:
        """Time to write one token."""
        return 1000 / self.decode if self.decode else None


@dataclass(frozen=True)
class Failure:
    """A run that ended without a report, or an artifact that could not be reloaded."""

    name: str
    command: str
    problem: str


@dataclass(frozen=True)
class Runs:
    """Everything found in a folder."""

    points: list[Point]
    failures: list[Failure]
    reports: list[dict[str, Any]] = field(default_factory=list)
    side_by_side: bool = False
    """Some ran while others did: their speeds are rough."""

    @property
    def varied(self) -> list[str]:
        """Settings that are not the same in all runs, in the order of the commands."""
        keys = dict.fromkeys(key for point in self.points for key in point.told)
        keys = {key: None for key in keys if not key.startswith(BESIDE)}
        return [key for key in keys if len({point.told.get(key) for point in self.points}) > 1]

    def label(self, point: Point) -> str:
        """What sets a run apart from the others."""
        said = [f"{short_key(key)}={short_value(point.told[key])}" for key in self.varied if key in point.told]
        return " ".join([*said, *[point.artifact] * bool(point.artifact)]) or point.name


def known_json(file: Path, *keys: str) -> dict[str, Any] | None:
    """An object with these keys; None for anything else that has such a file's name."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() >= set(keys) else None


def collect(folder: Path) -> Runs:
    """Read every report below `folder`. Of runs of the same command only the last one finished counts.

    Args:
        folder: of a sweep, or any folder with folders of finished runs in it.
    """
    found: dict[str, tuple[float, Path, dict[str, Any]]] = {}
    for file in folder.rglob("report.json"):
        report = known_json(file, "stages", "final", "artifacts", "command")
        if report is None:
            continue
        made = file.stat().st_mtime
        if made >= found.get(report["command"], (0.0,))[0]:
            found[report["command"]] = made, file.parent, report
    finished = sorted(found.values(), key=lambda run: natural(run[1]))
    runs = [run for run in finished if "ppl" in run[2]["final"]]
    kept = {file.parent: known_json(file, "overrides", "alone") for file in folder.rglob(RECORD)}
    records = {where: record for where, record in kept.items() if record is not None}
    failures = [
        Failure(f"{relative(where, folder)} {artifact['name']}", report["command"], artifact["error"])
        for _, where, report in runs
        for artifact in report["artifacts"]
        if not form.runs(artifact)
    ]
    failures += [
        Failure(relative(where, folder), report["command"], "nothing was measured (evaluate.measure=false)")
        for _, where, report in finished
        if "ppl" not in report["final"]
    ]
    for where, record in sorted(records.items(), key=lambda item: natural(item[0])):
        command = " ".join(["python -m compress", *map(shlex.quote, record["overrides"])])
        if (where / "report.json").exists() or command in found:
            continue
        problem = record.get("problem") or "it was killed before its end, or is still running"
        failures.append(Failure(relative(where, folder), command, problem))
    return Runs(
        points=[point for _, where, report in runs for point in points_of(report, relative(where, folder))],
        failures=failures,
        reports=[report for _, _, report in runs],
        side_by_side=any(not record["alone"] for record in records.values()),
    )


def points_of(report: Mapping[str, Any], folder: str) -> list[Point]:
    """The final model of a run, and every further artifact that runs."""
    final = report["final"]
    first = next((artifact for artifact in report["artifacts"] if artifact["metrics"]), None)
    verified = all(artifact["verified"] for artifact in report["artifacts"])

    def point(artifact: str, figures: Mapping[str, Any], speed: Mapping[str, float], size: float, good: bool) -> Point:
        return Point(
            folder=folder,
            artifact=artifact,
            command=report["command"],
            told=told(report["command"]),
            # the report says null for what is no number (`report.write.finite`)
            figures={name: math.nan if value is None else value for name, value in figures.items()},
            bytes=float(size),
            decode=speed.get("decode_tokens_per_second"),
            prefill=speed.get("prefill_tokens_per_second"),
            seconds=float(report["seconds"]),
            verified=good,
        )

    # the first artifact measured is what `final` tells of
    good = first["verified"] if first else verified
    points = [point("", final, final.get("speed") or {}, final["bytes"], good)]
    for artifact in report["artifacts"]:
        if artifact is first or not form.runs(artifact):
            continue
        figures, speed = form.figures_of(report, artifact), artifact.get("speed") or {}
        points.append(point(artifact["name"], figures, speed, artifact["bytes"], artifact["verified"]))
    return points


def told(command: str) -> dict[str, str]:
    """Settings of a command: name -> value; a dropped stage is told as such."""
    found = {}
    for word in shlex.split(command)[3:]:
        key, _, value = word.partition("=")
        found[key.lstrip("+~")] = "dropped" if word.startswith("~") else value
    return found


def natural(path: Path) -> list[tuple[str, int]]:
    """Orders 2 before 10."""
    return [(word, int(number or 0)) for word, number in re.findall(r"(\D+)(\d*)", f"/{path.as_posix()}")]


def relative(folder: Path, root: Path) -> str:
    """A folder below `root`; `root` itself is a dot."""
    return folder.relative_to(root).as_posix()


def short_key(key: str) -> str:
    """stages.prune.keep -> prune.keep, quant@stages.quant -> quant."""
    return key.rpartition("@")[2].removeprefix("stages.")


def short_value(value: str) -> str:
    """A searched value has more digits than anyone reads."""
    try:
        return f"{float(value):.4g}" if len(value) > 8 else value
    except ValueError:
        return value


def finite(values: Sequence[float | None]) -> list[float]:
    """Those that are numbers."""
    return [value for value in values if value is not None and math.isfinite(value)]
