"""The runs as rows: sweep.csv, and a table for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from compress.report import format as form
from compress.report.html.markup import short
from compress.sweep.points import Point, Runs, short_key, short_value

FIGURES = (
    "ppl", "kl_to_teacher", "kl_stderr", "top1_agreement",
    "second_ppl", "second_kl_to_teacher", "second_kl_stderr", "second_top1_agreement", "params",
)  # fmt: skip
COLUMNS = 4
"""Settings that get a column each; more of them share one."""
MACHINE = ("machine", "device", "threads", "versions")


def comma_separated(runs: Runs, fronts: Sequence[int]) -> str:
    """sweep.csv: finished runs with everything measured, then the failed ones with what went wrong.

    Args:
        runs: as collected.
        fronts: indices of the points that no other dominates.
    """
    varied = runs.varied
    columns = ["run", *varied, *FIGURES, "bytes", "decode_tokens_per_second", "prefill_tokens_per_second"]
    columns += ["milliseconds_per_token", "seconds", "verified", "pareto", "problem", "command", *MACHINE]
    by_command = {report["command"]: report for report in runs.reports}
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for index, point in enumerate(runs.points):
        row: dict[str, Any] = {key: point.told.get(key, "") for key in varied}
        row |= {name: point.figures.get(name, "") for name in FIGURES}
        row |= {"run": point.name, "bytes": round(point.bytes), "seconds": round(point.seconds, 1)}
        row |= {"decode_tokens_per_second": point.decode, "prefill_tokens_per_second": point.prefill}
        row |= {"milliseconds_per_token": point.milliseconds, "verified": point.verified, "pareto": index in fronts}
        row |= {"command": point.command} | machine(by_command[point.command])
        writer.writerow(row)
    for failure in runs.failures:
        writer.writerow({"run": failure.name, "problem": failure.problem, "command": failure.command})
    return text.getvalue()


def machine(report: Mapping[str, Any]) -> dict[str, Any]:
    """Where a run was made, and with what."""
    versions = " ".join(f"{name}={version}" for name, version in report["versions"].items())
    return {name: report[name] for name in MACHINE[:-1]} | {"versions": versions}


def header(runs: Runs) -> list[str]:
    """Headings of `cells`."""
    last = ["ppl", "KL", "KL, other text", "top-1", "params", "size", "ms/token", "time"]
    told = [short_key(key) for key in runs.varied] if len(runs.varied) <= COLUMNS else ["settings"]
    return ["run", *told, *last]


def cells(runs: Runs, point: Point) -> list[str]:
    """One run as people read it."""
    figures, pace = point.figures, point.milliseconds
    told = [short_value(point.told.get(key, "")) for key in runs.varied]
    return [
        point.name,
        *(told if len(told) <= COLUMNS else [short(runs.label(point), 60)]),
        form.cell(figures, "ppl", "{:.2f}".format),
        form.cell(figures, "kl_to_teacher", "{:.3f}".format),
        form.cell(figures, "second_kl_to_teacher", "{:.3f}".format),
        form.cell(figures, "top1_agreement", "{:.1%}".format),
        form.number(figures["params"]),
        form.size(point.bytes),
        "" if pace is None else f"{pace:.1f}",
        form.duration(point.seconds),
    ]


def values(runs: Runs, point: Point) -> list[float | str | None]:
    """What `cells` are sorted by."""
    told = [as_number(point.told.get(key, "")) for key in runs.varied]
    if len(told) > COLUMNS:
        told = [runs.label(point)]
    measured = [
        point.figure(name) for name in ("ppl", "kl_to_teacher", "second_kl_to_teacher", "top1_agreement", "params")
    ]
    return [as_number(point.name), *told, *measured, point.bytes, point.milliseconds, point.seconds]


def as_number(text: str) -> float | str:
    """A number where it is one."""
    try:
        return float(text)
    except ValueError:
        return text


def terminal(runs: Runs, fronts: Sequence[int], folder: str) -> str:
    """The table at the end of a sweep."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, title="* no other run beats it in everything", title_justify="left")
    for column, name in enumerate(["", *header(runs)]):
        shown.add_column(name, justify="left" if column <= 1 else "right", no_wrap=True)
    for index, point in enumerate(runs.points):
        shown.add_row("*" if index in fronts else "", *cells(runs, point), style="" if point.verified else "red")
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if not console.is_terminal:
        console.width = 160
    with console.capture() as captured:
        console.print()
        console.print(shown)
        console.print(f"\n{len(runs.points)} to choose from: {folder}/sweep.html")
    return captured.get().rstrip("\n")
