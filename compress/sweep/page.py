"""sweep.html: which run to ship. One page that loads nothing; without its script it still shows and says everything."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from compress.report import format as form
from compress.report.html.markup import bullets, card, clean, esc, facts, figure, figures, legend, paragraph, section
from compress.report.html.page import FOOTER, document
from compress.report.html.sections import kl, plus_minus
from compress.sweep import charts
from compress.sweep.points import Point, Runs, finite, short_key
from compress.sweep.quality import QUALITIES, Standing, standing
from compress.sweep.script import SCRIPT
from compress.sweep.style import STYLE
from compress.sweep.table import cells, header, values


def render(runs: Runs) -> str:
    """The page; equal runs give equal bytes."""
    stood = [standing(runs.points, quality) for quality in QUALITIES]
    report = runs.reports[0]
    names = sorted({report["pipeline"] for report in runs.reports})
    title = f"{', '.join(names)}: {len(runs.points)} to choose from"
    body = [
        headline(runs, stood[0], title),
        choice(runs, stood[0]),
        fronts(runs, stood),
        table(runs, stood[0]),
        commands(runs),
        about(runs, report),
        '<div id="tip" role="status" hidden></div>',
        FOOTER,
    ]
    data = json.dumps(machine_readable(runs, stood), allow_nan=False, separators=(",", ":"))
    return document(title, body, STYLE, data, SCRIPT)


def headline(runs: Runs, stood: Standing, title: str) -> str:
    """How many, how far they spread, and what does not compare."""
    original = runs.reports[0]["baseline"]
    models = ", ".join(sorted({report["model"]["name"] for report in runs.reports}))
    varied = ", ".join(map(short_key, runs.varied)) or "nothing"
    lead = f"{models}. {len(stood.front)} of {len(runs.points)} are beaten by no other in everything. Varied: {varied}."
    speed = (original.get("speed") or {}).get("decode_tokens_per_second")
    tiles = [
        card("KL to the original", *spread([p.figure("kl_to_teacher") for p in runs.points], kl), "nats per token"),
        card("perplexity", *spread([p.figure("ppl") for p in runs.points], "{:.2f}".format), of(original["ppl"])),
        card("size", *spread([p.bytes for p in runs.points], form.size), of(original["bytes"], form.size)),
        card(
            "decode, ms per token",
            *spread([p.milliseconds for p in runs.points], "{:.1f}".format),
            of(1000 / speed) if speed else "",
        ),
    ]
    return (
        f"<header><h1>{esc(title)}</h1>"
        + paragraph(lead, "lead")
        + f'<div class="tiles">{"".join(tiles)}</div>'
        + "".join(f'<div class="verdict caution" role="alert">{esc(said)}</div>' for said in warnings(runs))
        + "</header>"
    )


def spread(found: Sequence[float | None], show: Any) -> tuple[str, str]:
    """The best of a figure, and the worst."""
    known = finite(found)
    return (show(min(known)), f"to {show(max(known))}") if known else ("–", "not measured")


def of(value: float, show: Any = "{:.2f}".format) -> str:
    """What the original has."""
    return f"the original {show(value)}"


def warnings(runs: Runs) -> list[str]:
    """What a reader must know before comparing."""
    said = []
    if runs.failures:
        said.append(f"{len(runs.failures)} failed: they are listed below, with what went wrong.")
    bad = [point.name for point in runs.points if not point.verified]
    if bad:
        said.append(f"Not verified, do not ship: {', '.join(bad)}.")
    for what, keys in (
        ("original models", {(report["model"]["name"], report["baseline"]["ppl"]) for report in runs.reports}),
        ("texts", {report["text"]["fingerprint"] for report in runs.reports}),
        ("protocols", {report["protocol"] for report in runs.reports}),
        ("machines", {(report["machine"], report["device"], report["threads"]) for report in runs.reports}),
    ):
        if len(keys) > 1:
            figures = "speeds" if what == "machines" else "figures of quality"
            said.append(f"The runs have {len(keys)} different {what}: their {figures} do not compare.")
    return said


def choice(runs: Runs, stood: Standing) -> str:
    """The recommended run; the script lets the reader give a budget."""
    pace = number("pace", "slowest decode, ms per token") if timed(runs) else ""
    inputs = number("size", "largest size, MB") + pace
    options = "".join(f'<option value="{i}">{esc(quality.title)}</option>' for i, quality in enumerate(QUALITIES))
    point = runs.points[stood.middle] if stood.middle is not None else None
    return section(
        "choose",
        "Which one to ship",
        '<div class="controls scripted" hidden>'
        f'{inputs}<label>quality is<select id="quality">{options}</select></label>'
        '<button type="button" id="clear">no budget</button></div>',
        f'<div id="choice" aria-live="polite"><h3 id="which">{esc(title(runs, point)) if point else "none"}</h3>'
        f'<p class="said" id="figures">{esc(line(point)) if point else ""}</p>'
        f'<p class="note" id="why">{esc(why(runs))}</p>'
        f'<div class="command" id="made"><pre id="make">{esc(point.command) if point else ""}</pre>'
        '<button type="button" class="scripted" hidden>copy</button></div></div>',
    )


def why(runs: Runs) -> str:
    """What the choice is without a budget."""
    pace = " and the fastest decoding" if timed(runs) else ""
    return (
        "No budget is given, so this is the one in the middle: of the runs that no other beats in everything, the "
        f"nearest to the best quality, the smallest size{pace}, each scaled from its best to its worst."
    )


def timed(runs: Runs) -> bool:
    """Was the speed of any run measured?"""
    return any(point.milliseconds is not None for point in runs.points)


def number(name: str, label: str) -> str:
    """A field for a number."""
    kind = 'type="number" min="0" step="any" inputmode="decimal" placeholder="any"'
    return f'<label>{esc(label)}<input id="{name}" {kind}></label>'


def title(runs: Runs, point: Point) -> str:
    """A run and what sets it apart."""
    label = runs.label(point)
    return f"run {point.name}" + (f": {label}" if label != point.name else "")


def line(point: Point) -> str:
    """The figures of a run in one line."""
    pace = point.milliseconds
    quality = [
        f"KL {kl(point.figure('kl_to_teacher'))}{plus_minus(point.figure('kl_stderr'))}",
        f"other text {kl(point.figure('second_kl_to_teacher'))}",
        f"perplexity {point.figure('ppl'):.2f}",
    ]
    parts = [
        form.size(point.bytes),
        *(quality if "ppl" in point.figures else ["quality not measured"]),
        f"{pace:.1f} ms per token ({point.decode:.0f} tokens/s)" if pace else "",
        "" if point.verified else "NOT VERIFIED",
    ]
    return ", ".join(part for part in parts if part)


def fronts(runs: Runs, stood: Sequence[Standing]) -> str:
    """Quality against size and speed for every figure of quality, and size against speed."""
    points = runs.points
    hints = [f"{title(runs, point)}\n{line(point).replace(', ', chr(10))}" for point in points]
    size = charts.Side("size", [point.bytes for point in points], lambda count: form.size(count).replace(".0 ", " "))
    pace = charts.Side(
        "decode, ms per token",
        [math.nan if point.milliseconds is None else point.milliseconds for point in points],
        "{:g}".format,
    )
    charted = [(index, quality, across) for index, quality in enumerate(QUALITIES) for across in (size, pace)]
    drawn = []
    for index, quality, across in charted:
        worth = charts.Side(quality.title, [p.figure(quality.name) for p in points], "{:g}".format)
        shown = chart(across, worth, quality.short, hints, kinds(points, stood[index]))
        drawn.append(shown.replace("<figure ", f'<figure data-quality="{index}"{" hidden" * bool(index)} ', 1))
    drawn.append(chart(pace, size, "size", hints, kinds(points, stood[0])))
    key = legend(("front", "beaten by no other"), ("dominated", "beaten by another"), ("chosen", "the choice"))
    said = "Down and to the left is better. Point at a run for its settings; touch it to open its command below."
    return section("fronts", "Quality, size and speed", key, paragraph(said, "note"), figures(*drawn))


def chart(across: charts.Side, up: charts.Side, name: str, hints: Sequence[str], drawn_as: Sequence[str]) -> str:
    """One chart with its title."""
    key = f"{words(up.title)}-{words(across.title)}"
    label = f"Scatter chart: {up.title} against {across.title}; every run is a dot, the line joins the best"
    svg = charts.scatter(key, label, across, up, hints, drawn_as)
    return figure(f"chart-{key}", f"{name} and {across.title.split(',')[0]}", svg)


def words(text: str) -> str:
    """A name for an id."""
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def kinds(points: Sequence[Point], stood: Standing) -> list[str]:
    """Class of every run's dot and row."""
    return [
        charts.REFUSED if not point.verified else "front" if index in stood.front else "dominated"
        for index, point in enumerate(points)
    ]


def table(runs: Runs, stood: Standing) -> str:
    """All figures; the headings sort."""
    head = "".join(f'<th scope="col"><button type="button">{esc(name)}</button></th>' for name in header(runs))
    body = ""
    for index, (point, kind) in enumerate(zip(runs.points, kinds(runs.points, stood), strict=True)):
        first, *rest = cells(runs, point)
        link = f'<a href="#run-{index}">{esc(first)}</a>'
        body += f'<tr data-run="{index}" class="{kind}"><th scope="row">{link}</th>'
        body += "".join(f"<td>{esc(cell)}</td>" for cell in rest) + "</tr>"
    return section(
        "runs",
        "All runs",
        '<p class="note scripted" hidden>Touch a heading to sort by it. The same rows are in sweep.csv.</p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="All runs"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>",
    )


def commands(runs: Runs) -> str:
    """What makes each run again, and what went wrong with those that failed."""
    failed = "".join(
        f"<details open><summary><b>run {esc(failure.name)}</b>, failed: {esc(failure.problem)}</summary>"
        f"{command(failure.command)}</details>"
        for failure in runs.failures
    )
    made = "".join(
        f'<details id="run-{index}"><summary><b>{esc(title(runs, point))}</b></summary>'
        f'<p class="note">{esc(line(point))}. <a href="{esc(point.folder)}/report.html">Its own report</a></p>'
        f"{command(point.command)}</details>"
        for index, point in enumerate(runs.points)
    )
    return section("commands", "To make each again", failed, made)


def command(text: str) -> str:
    """A command that can be copied."""
    button = '<button type="button" class="scripted" hidden>copy</button>'
    return f'<div class="command"><pre>{esc(text)}</pre>{button}</div>'


def about(runs: Runs, report: dict[str, Any]) -> str:
    """How it was measured."""
    notes = []
    if timed(runs):
        notes.append("Speeds are of one sequence at a time, each in the runtime of its artifact; they are not exact.")
    if timed(runs) and runs.side_by_side:
        notes.append("Runs ran side by side: speeds were measured while others computed, and are only rough.")
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    pairs: list[tuple[str, object]] = [
        ("machine", f"{report['machine']}, {report['device']}, {report['threads']} threads"),
        ("versions", versions),
        ("text", f"{report['text']['name']}: {report['text']['origin']}"),
        ("protocol", report["protocol"]),
        ("all runs took", form.duration(sum(one["seconds"] for one in runs.reports)) + ", what was in store included"),
    ]
    return section("about", "How it was measured", facts(pairs), bullets(notes))


def machine_readable(runs: Runs, stood: Sequence[Standing]) -> dict[str, Any]:
    """What the script works on. Figures that are not finite are null."""
    found = [
        {
            "title": clean(title(runs, point)),
            "line": clean(line(point)),
            "said": clean(f"{title(runs, point)}\n{line(point).replace(', ', chr(10))}"),
            "command": clean(point.command),
            "bytes": point.bytes,
            "ms": point.milliseconds,
            "verified": point.verified,
            "sort": [known(value) for value in values(runs, point)],
            **{quality.name: known(point.figure(quality.name)) for quality in QUALITIES},
        }
        for point in runs.points
    ]
    good = [point for point in runs.points if point.verified]
    least = min(good, key=lambda point: point.bytes) if good else None
    fastest = min((p for p in good if p.milliseconds), key=lambda p: p.milliseconds or 0.0, default=None)
    smallest = f"The smallest has {form.size(least.bytes)}" if least else "None is verified"
    if fastest and fastest.milliseconds:
        smallest += f", the fastest takes {fastest.milliseconds:.1f} ms a token"
    return {
        "runs": found,
        "qualities": [
            {"name": q.name, "short": q.short, "front": s.front, "middle": s.middle}
            for q, s in zip(QUALITIES, stood, strict=True)
        ],
        "why": why(runs),
        "smallest": smallest + ".",
    }


def known(value: Any) -> Any:
    """Itself, or nothing where JSON has no word for it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
