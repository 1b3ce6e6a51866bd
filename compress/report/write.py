"""Writes every form of the report, and the cards and manifests of the artifacts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.report.settings import Report
from compress.store import write_atomically


def write_reports(report: Mapping[str, Any], output: Path, settings: Report) -> None:
    """Write report.json and what else is asked for into `output`."""
    write_atomically(output / "report.json", json.dumps(report, indent=2) + "\n")
    if settings.markdown:
        from compress.report.markdown import render

        write_atomically(output / "report.md", render(report))
    if settings.html:
        from compress.report.html import render as render_html

        write_atomically(output / "report.html", render_html(report))
