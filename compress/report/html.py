"""report.html (placeholder until the real one is written)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def render(report: Mapping[str, Any]) -> str:
    """The page."""
    return "<html></html>"
