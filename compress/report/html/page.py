"""What comes in which order on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.report.html import layers, sections
from compress.report.html.markup import esc
from compress.report.html.predicted import predicted
from compress.report.html.style import STYLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""Makes the browser itself refuse scripts and every request, should a text ever get past the escaping."""


def render(report: Mapping[str, Any]) -> str:
    """The page of a run's report; equal reports give equal bytes."""
    failed = any(not artifact["verified"] for artifact in report["artifacts"])
    title = ("FAILED: " if failed else "") + f"{report['model']['name']}, {report['pipeline']}"
    body = [
        sections.headline(report),
        sections.stages(report),
        sections.training(report),
        layers.inside(report),
        layers.answers(report),
        layers.tasks(report),
        predicted(report),
        layers.artifacts(report),
        layers.reproduce(report),
        "<footer>Written by compress. This page loads nothing from anywhere.</footer>",
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{esc(title)}</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            "<main>",
            *[part for part in body if part],
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )
