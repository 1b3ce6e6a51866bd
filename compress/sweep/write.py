"""Writes sweep.html and sweep.csv into the folder of a sweep, or of any finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress.durable import write_atomically
from compress.errors import UserError
from compress.preparation import check_writable


def write_sweep(folder: Path) -> str:
    """Write both; returns the table for the terminal.

    Raises:
        UserError: no run in `folder` has finished.
    """
    from compress.sweep.page import render
    from compress.sweep.points import collect
    from compress.sweep.quality import HELD_OUT, standing
    from compress.sweep.table import comma_separated, terminal

    runs = collect(folder)
    if not runs.points:
        raise UserError(
            f"{folder} holds no finished run.",
            "Give a folder with finished runs below it (each has a report.json): "
            "mode=sweep_report sweep.folder=outputs/prune_distill",
        )
    front = standing(runs.points, HELD_OUT).front
    write_atomically(folder / "sweep.csv", comma_separated(runs, front))
    write_atomically(folder / "sweep.html", render(runs))
    return terminal(runs, front, str(folder))


def report_folder(folder: str | None) -> dict[str, Any]:
    """What mode=sweep_report does.

    Raises:
        UserError: no folder was given, or none with finished runs.
    """
    if folder is None:
        raise UserError("mode=sweep_report needs a folder.", "Give sweep.folder=DIR, a folder of finished runs.")
    found = Path(folder).expanduser()
    if not found.is_dir():
        raise UserError(f"sweep.folder={folder} is no folder.", "Give a folder with finished runs below it.")
    check_writable(found, "a copy of it (the page and the table go into sweep.folder)")
    return {"message": write_sweep(found), "status": 0}
