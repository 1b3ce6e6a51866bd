"""The last thing on the screen: one table, and where everything is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.report import format as form


def show(report: Mapping[str, Any]) -> None:
    """Print to standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True, markup=False)
    if not console.is_terminal:
        console.width = 120
    table = Table(
        title=f"{report['pipeline']}: {report['model']['name']}", title_justify="left", box=None, pad_edge=False
    )
    header, rows = form.filled(form.HEADER, form.main_table(report))
    for column, name in enumerate(header):
        table.add_column(name, justify="left" if column == 0 else "right", no_wrap=True)
    for cells in rows:
        table.add_row(*cells)
    console.print()
    console.print(table)
    console.print()
    for sentence in [*form.healing(report), *form.speeds(report)]:
        console.print(sentence)
    bad = [form.failed(artifact) for artifact in report["artifacts"]] + [True] * len(report["left_out"])
    for failed, sentence in zip(bad, form.verdicts(report), strict=True):
        console.print(sentence, style="bold red" if failed else "")
    console.print(f"Took {form.duration(report['seconds'])}. Everything is in {report['output']}", soft_wrap=True)
