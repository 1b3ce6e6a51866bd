"""Small pieces of HTML. Whatever comes from outside (answers, paths, names) goes through `esc`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
"""Control characters, which HTML may not hold and a model may say, to the pictures Unicode has of them."""


def clean(value: object) -> str:
    """Text without what neither HTML nor SVG can hold: control characters and halves of surrogate pairs."""
    return str(value).replace("\r\n", "\n").translate(CONTROLS).encode("utf-8", "replace").decode("utf-8")


def esc(value: object) -> str:
    """Text that cannot become markup, in an element or a quoted attribute."""
    return html.escape(clean(value), quote=True)


def short(value: object, limit: int = 22) -> str:
    """A name that fits a label."""
    text = " ".join(clean(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def section(name: str, title: str, *parts: str) -> str:
    """A section of the page, or nothing where there is nothing to say."""
    body = "\n".join(part for part in parts if part)
    return f'<section id="{esc(name)}">\n<h2>{esc(title)}</h2>\n{body}\n</section>' if body else ""


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph, or nothing."""
    return f'<p class="{esc(kind)}">{esc(text)}</p>' if text else ""


def card(label: str, big: str, *remarks: str) -> str:
    """One big figure, and what is to be said of it."""
    said = "".join(f"<span>{esc(remark)}</span>" for remark in remarks)
    return f'<div class="tile"><span class="label">{esc(label)}</span><b>{esc(big)}</b>{said}</div>'


def bullets(sentences: Iterable[str]) -> str:
    """A list of sentences, or nothing."""
    items = "".join(f"<li>{esc(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>" if items else ""


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls in its own box where the screen is narrow; the first column is text and stays in sight."""
    head = "".join(f'<th scope="col">{esc(name)}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{esc(row[0])}</th>' + "".join(f"<td>{esc(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(caption)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Names and values, one line each."""
    return "<dl>" + "".join(f"<div><dt>{esc(name)}</dt><dd>{esc(value)}</dd></div>" for name, value in pairs) + "</dl>"


def figure(name: str, title: str, svg: str, note: str = "", legend: str = "") -> str:
    """A chart with its title above and what it needs to be read below; nothing without a chart."""
    if not svg:
        return ""
    below = f'<p class="note">{esc(note)}</p>' if note else ""
    return f'<figure id="{esc(name)}"><figcaption><b>{esc(title)}</b>{legend}</figcaption>{svg}{below}</figure>'


def legend(*entries: tuple[str, str]) -> str:
    """Colour (a class of the style sheet) and meaning."""
    keys = "".join(f'<span><i class="{esc(kind)}"></i>{esc(meaning)}</span>' for kind, meaning in entries)
    return f'<span class="legend">{keys}</span>'


def figures(*charts: str) -> str:
    """Charts side by side where there is room."""
    shown = "".join(charts)
    return f'<div class="figures">{shown}</div>' if shown else ""
