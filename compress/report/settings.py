"""What is told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Report:
    """Which reports are written; `report.json` always is."""

    markdown: bool = True
    """report.md"""
    html: bool = True
    """report.html, self-contained"""
