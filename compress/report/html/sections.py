"""The first half of the page: what came of the run, what each stage cost and won back, and how training went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from compress.report import format as form
from compress.report.html import charts
from compress.report.html.drawing import FIRST, SECOND
from compress.report.html.markup import bullets, card, esc, figure, figures, legend, paragraph, section, table

TEXTS = (("", "held-out", FIRST), ("second_", "other text", SECOND))
"""Prefix of the figures on a text, its name, its colour."""


def headline(report: Mapping[str, Any]) -> str:
    """Which model, what was done to it, and the figures most people come for."""
    model, final, baseline = report["model"], report["final"], report["baseline"]
    chain = " → ".join(stage["name"] for stage in report["stages"])
    tiles = [
        tile("size", form.size(final["bytes"]), form.size(baseline["bytes"]), fewer(baseline["bytes"], final["bytes"])),
        *(quality(baseline, final) if "ppl" in final else ()),
    ]
    before, after = baseline.get("speed"), final.get("speed")
    if before and after:
        old, new = before["decode_tokens_per_second"], after["decode_tokens_per_second"]
        prefill = f"prefill {before['prefill_tokens_per_second']:.0f} → {after['prefill_tokens_per_second']:.0f}"
        tiles.append(tile("decode, tokens/s", f"{new:.1f}", f"{old:.1f}", prefill))
    of_source = final["bytes_of_source_file"]
    share = f"The result takes {100 * final['bytes_of_bf16_original']:.1f}% of the original in bf16"
    share += f" and {100 * of_source:.1f}% of the source file. {model['note']}" if of_source else "."
    lead = f"Compressed by {report['pipeline']}: {chain}." if chain else "As it is, in the formats asked for."
    return (
        f"<header><h1>{esc(model['name'])}</h1>"
        + paragraph(lead, "lead")
        + f'<div class="tiles">{"".join(tiles)}</div>'
        + verdict(report)
        + paragraph(share, "note")
        + f"<details><summary>What was asked</summary><pre>{esc(report['command'])}</pre></details></header>"
    )


def quality(baseline: Mapping[str, Any], final: Mapping[str, Any]) -> list[str]:
    """Perplexity, KL and agreement."""
    return [
        tile(
            "perplexity",
            f"{final['ppl']:.2f}",
            f"{baseline['ppl']:.2f}",
            f"{final['ppl_ratio']:.3f} times the original's",
        ),
        tile(
            "KL to the original",
            kl(final["kl_to_teacher"]),
            kl(baseline["kl_to_teacher"]),
            f"nats per token{plus_minus(final['kl_stderr'])}; other text {kl(final['second_kl_to_teacher'])}",
        ),
        tile(
            "top-1 agreement",
            f"{100 * final['top1_agreement']:.1f}%",
            f"{100 * baseline['top1_agreement']:.0f}%",
            f"other text {100 * final['second_top1_agreement']:.1f}%",
        ),
    ]


def tile(label: str, now: str, before: str, remark: str) -> str:
    """One big figure."""
    return card(label, now, f"from {before}", remark)


def fewer(before: float, after: float) -> str:
    """How many times smaller."""
    if before <= 0 or after <= 0:
        return ""
    if abs(after / before - 1) < 0.05:  # nothing that one decimal would show
        return "the same size"
    return f"{before / after:.1f} times smaller" if after <= before else f"{after / before:.1f} times larger"


def kl(value: float) -> str:
    """Nats; small ones with an exponent, so that they are not shown as none."""
    if value == 0:
        return "0"
    return f"{value:.3f}" if value >= 0.001 or not math.isfinite(value) else f"{value:.1e}"


def plus_minus(error: float) -> str:
    """What follows a mean: its standard error, of which one window has none."""
    return f" ± {kl(error)}" if error else ""


VERDICTS = {
    True: ("good", "✓ Verified", "status"),
    False: ("bad", "✗", "alert"),
    None: ("none", "Not verified", "status"),
}
"""Verified or not, or never asked -> class, word and role of its box."""


def verdict(report: Mapping[str, Any]) -> str:
    """May the artifacts be shipped?"""
    blocks = []
    well = [artifact["verified"] for artifact in report["artifacts"]] + [False] * len(report["left_out"])
    for verified, sentence in zip(well, form.verdicts(report), strict=True):
        kind, word, role = VERDICTS[verified]
        blocks.append(f'<div class="verdict {kind}" role="{role}"><b>{word}</b>{esc(sentence)}</div>')
    return "".join(blocks) or '<div class="verdict none">No artifact was written, so none was verified.</div>'


def stages(report: Mapping[str, Any]) -> str:
    """KL and size along the chain, the main table, and what was won back."""
    named = form.before(report)
    named += [(stage["name"], stage["metrics"]) for stage in report["stages"]]
    named += [(f"artifact {a['name']}", a["metrics"]) for a in report["artifacts"] if a["metrics"]]
    divergence = charts.bars(
        "kl",
        "Bar chart: KL to the original after every stage, on the held-out and on the other text",
        [(name, [divergence_bar(name, row, *text) for text in TEXTS]) for name, row in named if "ppl" in row],
        room=len(TEXTS),
    )
    source = report["model"]["bytes"]
    other_size = source and abs(source - report["baseline"]["bytes"]) > 0.01 * source
    sizes = charts.bars(
        "bytes",
        "Bar chart: size after every stage",
        [(name, [size_bar(name, figures)]) for name, figures in named],
        room=len(TEXTS),
        mark=(source, f"source file {form.size(source)}") if other_size else None,
    )
    return section(
        "stages",
        "What each stage cost and won back" if report["stages"] else "What each format costs",
        figures(
            figure(
                "chart-kl",
                "KL to the original, nats per token",
                divergence,
                "Lower is better; the thin line is one standard error to each side.",
                legend(("first", "held-out text"), ("second", "other text")),
            ),
            figure("chart-size", "Size", sizes, legend=legend(("first", "weights as stored, embeddings included"))),
            *effort(report["stages"]),
        ),
        table("Figures after every stage", *form.filled(form.HEADER, form.main_table(report))),
        bullets(sentence.replace("->", "→") for sentence in form.healing(report)),
    )


def effort(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Time and memory of every stage."""
    times, peaks = [], []
    for row in rows:
        stored = " (from the store)" if row["cached"] else ""
        took, peak = form.duration(row["seconds"]), form.size(row["peak_rss_bytes"])
        times.append((row["name"], [charts.Bar(row["seconds"], took, f"{row['name']}: {took}{stored}")]))
        peaks.append((row["name"], [charts.Bar(row["peak_rss_bytes"], peak, f"{row['name']}: {peak}{stored}")]))
    note = (
        "A stage that came from the store shows what it took when it was made."
        if any(row["cached"] for row in rows)
        else ""
    )
    return [
        figure("chart-time", "Time", charts.bars("time", "Bar chart: time of every stage", times), note),
        figure(
            "chart-memory",
            "Peak memory",
            charts.bars("memory", "Bar chart: peak memory of every stage", peaks),
            "Of the whole process; files that are only mapped are not counted.",
        ),
    ]


def divergence_bar(name: str, found: Mapping[str, Any], prefix: str, text: str, colour: str) -> charts.Bar:
    """KL of one row on one text."""
    value, error = found[prefix + "kl_to_teacher"], found[prefix + "kl_stderr"]
    said = f"{name}, {text}: KL {kl(value)}{plus_minus(error)}, perplexity {found[prefix + 'ppl']:.2f}"
    return charts.Bar(value, kl(value), said, colour, error)


def size_bar(name: str, found: Mapping[str, Any]) -> charts.Bar:
    """Size of one row."""
    said = f"{name}: {form.size(found['bytes'])}, {form.number(found['params'])} parameters"
    return charts.Bar(found["bytes"], form.size(found["bytes"]), said)


def training(report: Mapping[str, Any]) -> str:
    """A curve for every stage that trained."""
    drawn = []
    for index, stage in enumerate(report["stages"]):
        details = stage["details"]
        curve = details.get("curve")
        if not curve:
            continue
        # every so many steps have one point, the first step the first
        stride = math.ceil(details["steps"] / len(curve))
        chart = charts.training(
            f"curve{index}",
            f"Line chart: loss and learning rate over the steps of {stage['name']}",
            curve,
            stride,
            details.get("validations") or (),
        )
        drawn.append(figure(f"chart-curve{index}", f"{stage['name']} ({stage['kind']})", chart, told(details, chart)))
    return section("training", "Training", figures(*drawn))


def told(details: Mapping[str, Any], chart: str) -> str:
    """How much was trained, in a sentence or two."""
    curve = details["curve"]
    parts = [f"{details['steps']} steps, {form.number(details['train_tokens'])} tokens"]
    if details["tokens_per_second"]:
        parts.append(f"{details['tokens_per_second']:.0f} tokens/s")
    if details["resumed_at_step"]:
        parts.append(f"went on at step {details['resumed_at_step']} after an interruption")
    sentence = ", ".join(parts) + "."
    if validations := details.get("validations"):
        best = min(validations, key=lambda found: found["loss"])
        sentence += f" Dots: loss on held-out text, lowest {best['loss']:.4g} at step {best['step']}."
    lost = sum(not math.isfinite(point["loss"]) for point in curve)
    if lost:
        sentence += f" The loss of {lost} of {len(curve)} points is not finite; they are not drawn."
    if chart and len(curve) - lost >= 20:
        sentence += " Thick line: running mean."
    return sentence
