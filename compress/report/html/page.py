"""What comes in which order on the page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from compress.report import format as form
from compress.report.html import layers, sections
from compress.report.html.markup import esc
from compress.report.html.predicted import predicted
from compress.report.html.style import STYLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""Makes the browser itself refuse scripts and every request, should a text ever get past the escaping."""

FOOTER = "<footer>Written by compress. This page loads nothing from anywhere.</footer>"


def render(report: Mapping[str, Any]) -> str:
    """The page of a run's report; equal reports give equal bytes."""
    failed = any(map(form.failed, report["artifacts"]))
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
        FOOTER,
    ]
    return document(title, body)


def document(title: str, body: Iterable[str], style: str = "", data: str = "", script: str = "") -> str:
    """A whole page around its sections.

    Args:
        title: of the page.
        body: sections; empty ones are left out.
        style: what is added to the style sheet.
        data: JSON that `script` finds under the id `data`.
        script: the only one that the browser will run.
    """
    policy, scripts = POLICY, []
    if script:
        # what stands in a script element cannot be escaped, so it may not close it
        held = data.replace("<", "\\u003c")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
        scripts = [f'<script type="application/json" id="data">{held}</script>', f"<script>{script}</script>"]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{esc(title)}</title>",
            f"<style>{STYLE}{style}</style>",
            "</head>",
            "<body>",
            "<main>",
            *[part for part in body if part],
            "</main>",
            *scripts,
            "</body>",
            "</html>",
            "",
        ]
    )
