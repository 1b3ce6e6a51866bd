"""What the estimate said before the run beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.report import format as form
from compress.report.html.markup import paragraph, section, table


def predicted(report: Mapping[str, Any]) -> str:
    """The section, or nothing where nothing was predicted."""
    rows = form.predicted_rows(report)
    if not rows:
        return ""
    return section(
        "predicted",
        "Predicted and measured",
        table("Predicted and measured for every stage", form.PREDICTED_HEADER, rows),
        paragraph(form.PREDICTED_NOTE, "note"),
    )
