"""report.md: the same as the HTML report without charts, for a terminal, a pull request or a diff."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from compress.report import format as form
from compress.report import shapes


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    header = list(header)
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def render(report: Mapping[str, Any]) -> str:
    """The whole page."""
    model, final = report["model"], report["final"]
    parts = [f"# {report['pipeline']}: {model['name']}"]
    parts.append(table(*form.filled(form.HEADER, form.main_table(report))))
    parts.append("\n".join(f"- {s}" for s in [*form.healing(report), *form.speeds(report), *form.verdicts(report)]))
    of_source = final["bytes_of_source_file"]
    parts.append(
        f"The result takes {100 * final['bytes_of_bf16_original']:.1f}% of the original in bf16"
        + (f" and {100 * of_source:.1f}% of the source file. {model['note']}" if of_source else ".")
    )
    for shown in shapes.tables(report):
        parts.append(f"## {shown.title}\n\n" + table(shown.header, shown.rows) + f"\n\n{shown.note}")
    if rows := form.runtime_rows(report):
        parts.append("## Artifacts in their runtimes\n\n" + table(form.RUNTIME_HEADER, rows))
    if rows := form.predicted_rows(report):
        parts.append(
            "## Predicted and measured\n\n" + table(form.PREDICTED_HEADER, rows) + f"\n\n{form.PREDICTED_NOTE}"
        )
    parts.append(f"Protocol: {report['protocol']}\n\nText: {report['text']['origin']}")
    if said := answers(report):
        parts.append(f"## Answers\n\n{said}")
    if final.get("tasks"):
        parts.append("## Tasks\n\n" + tasks(report))
    fields = {stage["name"]: stage["fields"] for stage in report["stages"]}
    parts.append(
        "## To make it again\n\n"
        f"```\n{report['command']}\n```\n\n"
        f"Seed {report['seed']}, {report['threads']} threads on {report['device']}, "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        + f".\n\n```json\n{json.dumps(fields, indent=2)}\n```"
    )
    return "\n\n".join(parts) + "\n"


def answers(report: Mapping[str, Any]) -> str:
    """Both models' answers, one prompt after the other."""
    blocks = []
    for before, after in zip(report["baseline"]["answers"], report["final"]["answers"], strict=True):
        blocks.append(
            f"**{before['prompt']}**\n\n"
            f"original (repeats {before['repetition']:.0%}):\n\n{quoted(before['answer'])}\n\n"
            f"compressed (repeats {after['repetition']:.0%}):\n\n{quoted(after['answer'])}"
        )
    return "\n\n".join(blocks)


def quoted(text: str) -> str:
    """A block quote."""
    return "\n".join(f"> {line}" for line in (text or "(nothing)").splitlines())


def tasks(report: Mapping[str, Any]) -> str:
    """Task scores with standard errors."""
    return table(form.TASK_HEADER, form.task_rows(report))
