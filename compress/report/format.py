"""Figures as people read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from compress.report.won_back import STUDENT

HEADER = ("", "perplexity", "KL", "top-1", "KL, other text", "params", "size", "time")
PREDICTED_HEADER = (
    "", "size", "measured", "off", "peak memory", "measured", "off", "time", "measured", "off",
)  # fmt: skip
PREDICTED_NOTE = (
    "Predicted from the config alone, before anything was loaded. Memory is what the process itself holds; time is for "
    "an idle machine at the speed it was measured at."
)
RUNTIMES = {
    "llama_cpp": "llama.cpp",
    "onnxruntime": "onnxruntime",
    "executorch": "ExecuTorch",
    "compress": "compress.load",
}
"""How a runtime is called; plain transformers where none is named."""
RUNTIME_HEADER = ("", "runtime", "size", "perplexity", "", "KL", "loaded in", "prefill", "decode, tokens/s")
TASK_HEADER = ("task", "original", "compressed")


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
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60:02d} s"


def cell(figures: Mapping[str, Any], name: str, show: Callable[[float], str]) -> str:
    """One figure; empty where it was not measured."""
    return show(figures[name]) if name in figures else ""


def runs(artifact: Mapping[str, Any]) -> bool:
    """It is there, and nothing has shown that it does not run: its context may be too short for a perplexity."""
    return bool(artifact["metrics"]) or not failed(artifact)


def failed(artifact: Mapping[str, Any]) -> bool:
    """It does not say what the pipeline's model says; one that was not asked has not failed."""
    return artifact["verified"] is False


def figures_of(report: Mapping[str, Any], artifact: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured of an artifact; where nothing was, its size beside what the last stage says of its shape."""
    if artifact["metrics"]:
        return dict(artifact["metrics"])
    last = report["stages"][-1]["metrics"] if report["stages"] else report["baseline"]
    return {name: last[name] for name in ("params", "bytes_bf16")} | {"bytes": artifact["bytes"]}


def row(name: str, figures: Mapping[str, Any], seconds: float | None, cached: bool = False) -> tuple[str, ...]:
    """One line of the main table."""
    took = "" if seconds is None else duration(seconds) + (" (stored)" if cached else "")
    return (
        name,
        cell(figures, "ppl", "{:.2f}".format),
        cell(figures, "kl_to_teacher", "{:.3f}".format),
        cell(figures, "top1_agreement", "{:.1%}".format),
        cell(figures, "second_kl_to_teacher", "{:.3f}".format),
        number(figures["params"]),
        size(figures["bytes"]),
        took,
    )


def in_a_line(figures: Mapping[str, Any]) -> str:
    """What a stage came to, for the terminal while the run goes on."""
    if "ppl" not in figures:
        return f"not measured, {size(figures['bytes'])}"
    return (
        f"perplexity {figures['ppl']:.2f}, KL to the original {figures['kl_to_teacher']:.3f} "
        f"(other text: {figures['second_kl_to_teacher']:.3f})"
    )


def compared_with(report: Mapping[str, Any]) -> str:
    """What the first row is: the original, or a teacher of the user's."""
    return f"teacher {report['teacher']}" if report.get("teacher") else "original"


def before(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """What there was before the first stage, by name: the original, or a teacher and its student."""
    student = report.get("student")
    return [(compared_with(report), report["baseline"]), *([("student, untrained", student)] if student else [])]


def filled(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns in which nothing stands: nothing was measured there."""
    columns = [place for place in range(len(header)) if place == 0 or any(row[place] for row in rows)]
    return [header[place] for place in columns], [[row[place] for place in columns] for row in rows]


def main_table(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Original, a student of the user's, every stage, every artifact: rows under `HEADER`."""
    rows = [row(name, figures, None) for name, figures in before(report)]
    rows += [row(s["name"], s["metrics"], s["seconds"], s["cached"]) for s in report["stages"]]
    rows += [row(f"artifact {a['name']}", figures_of(report, a), None) for a in report["artifacts"] if runs(a)]
    return rows


def predicted_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What the estimate said before the run, and what was measured: rows under `PREDICTED_HEADER`."""
    rows = []
    for stage in report["stages"]:
        said = stage.get("predicted")
        if not said:
            continue
        cells = [stage["name"]]
        for key, show in (("bytes", size), ("peak_rss_bytes", size), ("seconds", duration)):
            off = f"{100 * (said[key] / stage[key] - 1):+.1f}%" if stage[key] else ""
            cells += [show(said[key]), show(stage[key]), off]
        rows.append(tuple(cells))
    for artifact in report["artifacts"]:
        if runs(artifact) and artifact.get("predicted") and not artifact["cached"]:
            said, took = artifact["predicted"]["seconds"], artifact["seconds"]
            blank = [""] * 6
            off = f"{100 * (said / took - 1):+.1f}%"
            rows.append((f"artifact {artifact['name']}", *blank, duration(said), duration(took), off))
    return rows


def fractions(report: Mapping[str, Any]) -> list[str]:
    """One sentence for every entry of `won_back`."""
    sentences = []
    for entry in report["won_back"]:
        stage, harmed, fraction, alone = entry["stage"], entry["of"], entry["fraction"], entry["fraction_alone"]
        text = "other text" if entry["text"] == "other text" else f"{entry['text']} text"
        path = [entry["kl_before"], entry["kl_damaged"], entry["kl_healed"]]
        did_harm = f"{harmed} added"
        if harmed == STUDENT:
            path, did_harm = path[1:], f"{harmed} began with"
        if fraction is None or not math.isfinite(fraction):
            said = f"{did_harm} no KL on the {text} that {stage} could take away"
        elif fraction < 0:
            said = f"{stage} leaves {-100 * fraction:.0f}% more than the KL that {did_harm} on the {text}"
        elif entry["kl_left"] == entry["kl_damaged"]:
            said = f"{stage} took away {100 * fraction:.0f}% of the KL that {did_harm} on the {text}"
        else:
            # others healed before it: what is gone by now is not its work alone
            path.insert(len(path) - 1, entry["kl_left"])
            said = f"after {stage}, {100 * fraction:.0f}% of the KL that {did_harm} on the {text} is gone"
            if alone is not None and math.isfinite(alone):
                did = "added another" if alone <= -0.005 else "took away"
                said += f"; {stage} itself {did} {abs(100 * alone):.0f}% of what it was given"
        sentences.append(f"{said} ({' -> '.join(f'{kl:.3f}' for kl in path)}).")
    return sentences


def fitted(report: Mapping[str, Any]) -> list[str]:
    """One sentence for every stage that trained on the text's own tokens: what a perplexity says then, and what not."""
    return [
        f"{stage['name']} trained on the text's own tokens too (loss.ce={ce:g}): perplexity falls by fitting that kind "
        "of text as well, so it is the KL that says how much of the original is left."
        for stage in report["stages"]
        if (ce := (stage["fields"].get("heal") or stage["fields"]).get("loss", {}).get("ce"))
    ]


def healing(report: Mapping[str, Any]) -> list[str]:
    """What healing won back, and how to read it."""
    return [*fractions(report), *fitted(report)]


def verdicts(report: Mapping[str, Any]) -> list[str]:
    """One sentence for every artifact, then one for every export that was left out."""
    sentences = []
    for a in report["artifacts"]:
        if a["verified"]:
            said = f"mean KL to the pipeline's model {a['mean_kl']:.1e}"
            if a.get("emulation"):
                said += f", to an emulation of the runtime {a['emulation']['mean_kl']:.1e}"
            if speed := a.get("speed"):
                rates = (f"{what} {speed[f'{what}_tokens_per_second']:.0f}" for what in ("prefill", "decode"))
                said += f", {' and '.join(rates)} tokens/s"
            runtime = runtime_of(a).replace("transformers", "plain transformers")
            sentences.append(f"{a['name']}: {size(a['bytes'])}, reloaded in a fresh process by {runtime}, {said}.")
        elif not failed(a):
            sentences.append(
                f"{a['name']}: {size(a['bytes'])}, written and not reloaded, for nothing is measured "
                "(evaluate.measure=false): try it before you ship it."
            )
        else:
            sentences.append(f"{a['name']}: FAILED: {a['error']}. Do not ship it.")
    return [*sentences, *(f"{name}: LEFT OUT: {why}" for name, why in report["left_out"].items())]


def runtime_of(artifact: Mapping[str, Any]) -> str:
    """What it was measured in."""
    return RUNTIMES.get(artifact.get("runtime", ""), "transformers")


def runtime_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Original, the file it came in and artifacts, each in its own runtime: rows under `RUNTIME_HEADER`."""
    if "ppl" not in report["baseline"]:
        return []
    original = report["baseline"]["ppl"]

    def cells(name: str, runtime: str, figures: Mapping[str, Any], speed: Mapping[str, float], load: str) -> list[str]:
        rates = [speed.get(f"{what}_tokens_per_second") for what in ("prefill", "decode")]
        shown = (
            ("ppl", "{:.2f}".format),
            ("ppl", lambda ppl: f"{ppl / original:.3f}x"),
            ("kl_to_teacher", "{:.3f}".format),
        )
        quality = [cell(figures, key, show) for key, show in shown]
        return [name, runtime, size(figures["bytes"]), *quality, load, *(f"{r:.0f}" if r else "" for r in rates)]

    rows = [cells(compared_with(report), "transformers", report["baseline"], report["baseline"].get("speed") or {}, "")]
    rows += [
        cells(a["name"], runtime_of(a), figures_of(report, a), a.get("speed") or {}, f"{a['load_seconds']:.1f} s")
        for a in [report["source_file"], *report["artifacts"]]
        if a and runs(a)
    ]
    return [tuple(row) for row in rows] if len(rows) > 1 else []


def speeds(report: Mapping[str, Any]) -> list[str]:
    """Reading and writing, before and after."""
    first, after = report["baseline"].get("speed"), report["final"].get("speed")
    if not first or not after:
        return []
    return [
        f"{what} {first[key]:.0f} -> {after[key]:.0f} tokens/s"
        for what, key in (("prefill", "prefill_tokens_per_second"), ("decode", "decode_tokens_per_second"))
    ]


def task_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Task scores with their standard errors: rows under `TASK_HEADER`."""
    first, after = report["baseline"].get("tasks") or {}, report["final"].get("tasks") or {}

    def cell(scores: Mapping[str, float], metric: str) -> str:
        if metric not in scores:
            return ""
        if metric == "samples":
            return f"{scores[metric]:.0f}"
        name, comma, filtered = metric.partition(",")
        error = scores.get(f"{name}_stderr{comma}{filtered}")
        return f"{scores[metric]:.3f}" + (f" ± {error:.3f}" if error is not None else "")

    return [
        (f"{task} {metric}", cell(first.get(task, {}), metric), cell(scores, metric))
        for task, scores in after.items()
        for metric in scores
        if not metric.partition(",")[0].endswith("_stderr")
    ]
