"""The second half of the page: what happened inside the model, what it says, the artifacts, and how to repeat it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from compress.report import format as form
from compress.report import shapes
from compress.report.html import charts, errors
from compress.report.html.drawing import SECOND
from compress.report.html.markup import (
    esc,
    facts,
    figure,
    figures,
    legend,
    paragraph,
    section,
    table,
)
from compress.report.html.places import places

WIDTHS = {
    "layers": "layers",
    "mlp": "MLP neurons",
    "heads": "KV groups",
    "query_heads": "query heads per group",
    "hidden": "hidden channels",
}
LOOP = 0.3
"""From this share of repeated 4-grams on, an answer is marked as going in circles."""


def inside(report: Mapping[str, Any]) -> str:
    """Per-layer charts of every stage that says something about layers."""
    parts = [
        f"<h3>{esc(shown.title)}</h3>" + table(shown.title, shown.header, shown.rows) + paragraph(shown.note, "note")
        for shown in shapes.tables(report)
    ]
    for index, stage in enumerate(report["stages"]):
        if "widths" in stage["details"]:
            parts.append(pruning(index, stage))
        if "relative_error" in stage["details"]:
            parts.append(errors.quantization(index, stage))
    return section("layers", "Layer by layer", *parts)


def pruning(index: int, stage: Mapping[str, Any]) -> str:
    """What a pruning stage took away."""
    details = stage["details"]
    before, after = details["widths_before"], details["widths"]
    rows = []
    for key, full in before.items():
        name, kept = WIDTHS.get(key, key), after[key]
        bar = charts.Bar(kept / full if full else 0.0, f"{kept} of {full}", f"{name}: {kept} of {full} kept")
        rows.append((name, [bar]))
    share = details["kept_fraction"]
    rows.append(("parameters", [charts.Bar(share, f"{share:.1%}", f"{share:.2%} of the parameters kept", SECOND)]))
    dropped = details["dropped_layers"]
    gone = f"Layers dropped: {', '.join(map(str, dropped))}." if dropped else "No layer was dropped."
    scores = details.get("layer_influence") or []
    influence = charts.influence(
        f"influence{index}", "Bar chart: influence of every layer before pruning", scores, dropped
    )
    groups = places(
        f"places{index}",
        "Map: which KV groups of every layer were kept",
        kept_groups(details.get("plan") or {}),
        before["layers"],
        before["heads"],
    )
    return f"<h3>{esc(stage['name'])}: what was removed</h3>" + figures(
        figure(
            f"chart-widths{index}",
            "What was kept",
            charts.bars(f"widths{index}", "Bar chart: what was kept of every width", rows),
            f"{gone} Parameters are counted without embedding and head.",
        ),
        figure(
            f"chart-influence{index}",
            "Influence of each layer",
            influence,
            "1 − cosine of what enters and what leaves the layer, on calibration text; numbered as in the original."
            + chosen_otherwise(stage["fields"]),
            legend(("first", "kept"), ("dropped", "dropped")) if dropped else "",
        ),
        figure(
            f"chart-places{index}",
            "KV groups of each layer",
            groups,
            "A KV group is a key-value head with the query heads that read it. Numbered as in the original.",
            legend(("first", "kept"), ("dropped", "removed")),
        ),
    )


def chosen_otherwise(fields: Mapping[str, Any]) -> str:
    """A sentence where layers were dropped by another measure than the one drawn."""
    by = (fields.get("prune") or fields).get("layer_importance", "block_influence")
    return "" if by == "block_influence" else f" Layers were chosen by another measure: {by}."


def kept_groups(plan: Mapping[str, Any]) -> dict[int, list[int]]:
    """Layer of the original -> KV groups that stayed in it; a dropped layer is left out."""
    heads = plan.get("heads", ())
    return {layer: heads[layer] for layer in plan.get("layers", ())}


def answers(report: Mapping[str, Any]) -> str:
    """What both models say to the same prompts."""
    pairs = [
        f"<h3>{esc(before['prompt'])}</h3>"
        f'<div class="pair">{answer("original", before)}{answer("compressed", after)}</div>'
        for before, after in zip(report["baseline"]["answers"], report["final"]["answers"], strict=True)
    ]
    said = "Greedy decoding. “Repeats” is the share of four-word sequences an answer has already said."
    return section("answers", "What they say", paragraph(said, "note") if pairs else "", *pairs)


def answer(who: str, said: Mapping[str, Any]) -> str:
    """One answer with how much it repeats itself."""
    kind = ' class="loop"' if said["repetition"] >= LOOP else ""
    text = f'<p dir="auto">{esc(said["answer"])}</p>' if said["answer"].strip() else "<p><em>(nothing)</em></p>"
    rate = f"<span{kind}>repeats {said['repetition']:.0%}</span>"
    return f'<div class="answer"><header><b>{esc(who)}</b>{rate}</header>{text}</div>'


def tasks(report: Mapping[str, Any]) -> str:
    """Scores on benchmark tasks."""
    rows = form.task_rows(report)
    return section("tasks", "Tasks", table("Task scores", form.TASK_HEADER, rows) if rows else "")


VERDICTS = {True: "verified", False: "FAILED: ", None: "not verified: it was not reloaded"}


def artifacts(report: Mapping[str, Any]) -> str:
    """What can be shipped, with the figures of its round trip."""
    rows = form.runtime_rows(report)
    parts = [table("Artifacts in their runtimes", form.RUNTIME_HEADER, rows)] if rows else []
    for artifact in report["artifacts"]:
        pairs: list[tuple[str, object]] = [
            ("verdict", VERDICTS[artifact["verified"]] + (artifact["error"] if form.failed(artifact) else "")),
            ("format", artifact["format"] + (", adapter beside the base" if artifact.get("adapter") else "")),
            ("size", f"{form.size(artifact['bytes'])} ({artifact['bytes']} bytes)"),
            ("runtime", form.runtime_of(artifact)),
            *(() if artifact["verified"] is None else round_trip(artifact)),
            ("sha256 of the weights", artifact["sha256"]),
            ("where", artifact["path"]),
        ]
        parts.append(f"<h3>{esc(artifact['name'])}</h3>" + facts(pairs))
    parts += [f"<h3>{esc(name)}</h3>" + facts([("left out", why)]) for name, why in report["left_out"].items()]
    return section("artifacts", "Artifacts", *parts)


def round_trip(artifact: Mapping[str, Any]) -> list[tuple[str, object]]:
    """What came out of the reload."""
    emulation = artifact.get("emulation")
    judged: list[tuple[str, object]] = []
    if emulation:
        judged = [(f"mean KL to an emulation ({emulation['scheme']})", f"{emulation['mean_kl']:.2e}")]
    first = artifact["first_difference"]
    return [
        ("mean KL to the pipeline's model", f"{artifact['mean_kl']:.2e}"),
        *judged,
        ("largest KL of a position", f"{artifact['max_kl']:.2e}"),
        ("top-1 agreement", f"{artifact['top1_agreement']:.1%}"),
        ("first different token", "none" if first is None else f"at position {first}"),
        ("loaded in", form.duration(artifact["load_seconds"]) if artifact["loaded"] else "it does not load"),
    ]


def reproduce(report: Mapping[str, Any]) -> str:
    """Everything needed to make it again."""
    model, text, other = report["model"], report["text"], report["second_text"]
    pairs: list[tuple[str, object]] = [
        ("seed", report["seed"]),
        ("device", f"{report['device']}, {report['threads']} threads, {report['machine']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in report["versions"].items())),
        ("model", f"{model['name']}, licence: {model['licence'] or 'not stated'}. {model['note']}".strip()),
        ("text", f"{text['name']}: {text['origin']}"),
        ("text's fingerprint", text["fingerprint"]),
        ("other text", f"{other['name']}: {other['origin']}, {other['fingerprint']}"),
        ("weights at the start", model["weights"] + f", commit {model['commit']}" * bool(model["commit"])),
        ("protocol", report["protocol"]),
        ("took", form.duration(report["seconds"])),
        ("where", report["output"]),
    ]
    fields = "".join(
        f"<details><summary><b>{esc(stage['name'])}</b> ({esc(stage['kind'])}), {esc(took(stage))}</summary>"
        f"<pre>{esc(json.dumps(stage['fields'], indent=2, ensure_ascii=False))}</pre>"
        f'<p class="note">Key {esc(stage["key"])}</p></details>'
        for stage in report["stages"]
    )
    return section(
        "reproduce",
        "To make it again",
        f"<pre>{esc(report['command'])}</pre>",
        facts(pairs),
        f"<h3>Settings of every stage</h3>{fields}" if fields else "",
    )


def took(stage: Mapping[str, Any]) -> str:
    """Time and memory of a stage."""
    stored = ", taken from the store" if stage["cached"] else ""
    return f"{form.duration(stage['seconds'])}, peak memory {form.size(stage['peak_rss_bytes'])}{stored}"
