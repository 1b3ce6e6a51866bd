"""Figures as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADER = ("", "perplexity", "KL", "top-1", "KL, other text", "params", "size", "time")


def size(count: float) -> str:
    """Bytes in decimal units, as disks and the Hub count them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def number(count: float) -> str:
    """Parameters: 134.5M."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f}{unit}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """Seconds, or minutes and seconds."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min {seconds % 60:02.0f} s"


def row(name: str, figures: Mapping[str, Any], seconds: float | None, cached: bool = False) -> tuple[str, ...]:
    """One line of the main table."""
    took = "" if seconds is None else duration(seconds) + (" (stored)" if cached else "")
    return (
        name,
        f"{figures['ppl']:.2f}",
        f"{figures['kl_to_teacher']:.3f}",
        f"{100 * figures['top1_agreement']:.1f}%",
        f"{figures['second_kl_to_teacher']:.3f}",
        number(figures["params"]),
        size(figures["bytes"]),
        took,
    )


def main_table(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Original, every stage, every artifact: rows under `HEADER`."""
    rows = [row("original", report["baseline"], None)]
    rows += [row(s["name"], s["metrics"], s["seconds"], s["cached"]) for s in report["stages"]]
    rows += [row(f"artifact {a['name']}", a["metrics"], None) for a in report["artifacts"] if a["metrics"]]
    return rows


def fractions(report: Mapping[str, Any]) -> list[str]:
    """One sentence for every entry of `won_back`."""
    sentences = []
    for entry in report["won_back"]:
        share = "no" if entry["fraction"] is None else f"{100 * entry['fraction']:.0f}% of the"
        sentences.append(
            f"{entry['stage']} took away {share} KL that {entry['of']} added on the {entry['text']} text "
            f"({entry['kl_before']:.3f} -> {entry['kl_damaged']:.3f} -> {entry['kl_healed']:.3f})."
            if entry["text"] == "held-out"
            else f"{entry['stage']} took away {share} KL that {entry['of']} added on the other text "
            f"({entry['kl_before']:.3f} -> {entry['kl_damaged']:.3f} -> {entry['kl_healed']:.3f})."
        )
    return sentences


def verdicts(report: Mapping[str, Any]) -> list[str]:
    """One sentence for every artifact."""
    sentences = []
    for a in report["artifacts"]:
        if a["verified"]:
            sentences.append(
                f"{a['name']}: {size(a['bytes'])}, reloaded in a fresh process by plain transformers, "
                f"mean KL to the pipeline's model {a['mean_kl']:.1e}."
            )
        else:
            sentences.append(f"{a['name']}: FAILED: {a['error']}. Do not ship it.")
    return sentences


def speeds(report: Mapping[str, Any]) -> list[str]:
    """Reading and writing, before and after."""
    before, after = report["baseline"].get("speed"), report["final"].get("speed")
    if not before or not after:
        return []
    return [
        f"{what} {before[key]:.0f} -> {after[key]:.0f} tokens/s"
        for what, key in (("prefill", "prefill_tokens_per_second"), ("decode", "decode_tokens_per_second"))
    ]
