"""Writes every form of the report, and the cards and manifests of the artifacts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.durable import write_atomically
from compress.report.settings import Report


def write_reports(report: Mapping[str, Any], output: Path, settings: Report) -> None:
    """Write report.json and what else is asked for into `output`."""
    text = json.dumps(finite(report), indent=2, allow_nan=False)
    write_atomically(output / "report.json", text + "\n")
    if settings.markdown:
        from compress.report.markdown import render

        write_atomically(output / "report.md", render(report))
    if settings.html:
        from compress.report.html import render as render_html

        write_atomically(output / "report.html", render_html(report))


def finite(value: Any) -> Any:
    """A copy with null for every number that is none: JSON has no word for it."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
