"""The estimate in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.report import format as form


def show_estimate(report: Mapping[str, Any]) -> None:
    """Print to standard output."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, markup=False)
    if not console.is_terminal:
        console.width = 120
    model, known = report["model"], report["machine"]
    sizes = f"{model['layers']} layers, width {model['hidden']}, {model['heads']} heads ({model['kv_heads']} KV) of "
    sizes += f"{model['head_dim']}, {model['mlp']} neurons, {model['vocab']:,} words"
    console.print(
        f"\n{model['name']} ({model['family']}): {form.number(model['params'])} parameters exactly", style="bold"
    )
    console.print(f"{model['params']:,}, of them {model['params_non_embedding']:,} in the layers. {sizes}.")
    console.print(
        f"This machine: {known['cpu']}, {known['threads']} threads, {form.size(known['memory'])} of memory; "
        f"{known['fp32'] / 1e9:.0f} GFLOP/s in fp32, {known['bf16'] / 1e9:.0f} in bf16, "
        f"{known['bandwidth'] / 1e9:.1f} GB/s (by {known['measured_by']})."
    )
    _formats(console, report)
    if report["stages"]:
        _stages(console, report)
    _ways(console, report)
    for sentence in report["needs"]:
        console.print(sentence[0].upper() + sentence[1:] + ".")
    console.print("Sources: " + "; ".join(f"{what}: {source}" for what, source in report["sources"].items()) + ".")


def _table(title: str, columns: list[str]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _formats(console: Any, report: Mapping[str, Any]) -> None:
    columns = list(report["formats"])
    table = _table("\nBytes on disk", ["", *columns])
    for name in report["formats"]["original"]:
        table.add_row(name, *(form.size(report["formats"][column][name]) for column in columns))
    console.print(table)
    rules = _table("\nTo serve the original", ["", "rule of thumb", "weights exactly", "KV cache, 1,024 tokens"])
    for bits, found in report["rule_of_thumb"].items():
        rules.add_row(bits, *(form.size(found[key]) for key in ("rule", "weights", "kv_cache_1024")))
    console.print(rules)


def _stages(console: Any, report: Mapping[str, Any]) -> None:
    names = ["stage", "params", "size", "host memory", "on a GPU", "tokens/s", "time", "decode, tokens/s"]
    table = _table("\nThe chain", names)
    decode = {row["after"]: row["tokens_per_second"] for row in report["decode"]}
    for stage in report["stages"]:
        table.add_row(
            stage["name"] + (" *" if stage["by_general_rule"] else ""),
            form.number(stage["params"]),
            form.size(stage["bytes"]),
            form.size(stage["peak_rss_bytes"]),
            form.size(stage["gpu_bytes"]),
            f"{stage['tokens_per_second']:.3g}" if stage["train_tokens"] else "",
            duration(stage["seconds"]),
            f"<= {decode[stage['name']]:.3g}",
        )
    measured = report["measuring"]
    for what, seconds in report["around"].items():
        sizes = (measured["peak_rss_bytes"], measured["gpu_bytes"]) if what == "measuring" else ()
        table.add_row(what, "", "", *(map(form.size, sizes) if sizes else ("", "")), "", duration(seconds), "")
    total = sum(stage["seconds"] for stage in report["stages"]) + sum(report["around"].values())
    peak = max(row["peak_rss_bytes"] for row in [*report["stages"], measured] if row)
    table.add_row("in all", "", "", form.size(peak), "", "", duration(total), "")
    console.print(table)
    if any(stage["by_general_rule"] for stage in report["stages"]):
        console.print("* by the general rule: nothing more is known of this kind of stage")
    console.print(
        f"Decode is bandwidth over bytes read per token; the original's is at most {decode['original']:.3g} tokens/s. "
        "Host memory is what the process holds itself; mapped weight files come on top and can be dropped.\n"
    )
    for stage in report["stages"]:
        terms = sorted(stage["terms"].items(), key=lambda item: -item[1])
        told = " + ".join(f"{term} {form.size(size)}" for term, size in terms)
        console.print(f"{stage['name']}, most in {stage['peak_in']}: {told}; mapped {form.size(stage['mapped_bytes'])}")


def duration(seconds: float) -> str:
    """Hours and days too: an estimate may be of something nobody should start."""
    if seconds < 2 * 3600:
        return form.duration(seconds)
    return f"{seconds / 3600:.0f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.0f} days"


def _ways(console: Any, report: Mapping[str, Any]) -> None:
    table = _table("\nWays to train it", ["", "student", "with teacher", "here", "smallest GPU"])
    for way in report["training"]:
        count = f"{way['gpus']} x " if way["gpus"] and way["gpus"] > 1 else ""
        table.add_row(
            way["way"],
            form.size(way["student_bytes"]),
            form.size(way["bytes"]),
            "yes" if way["here"] else "no",
            count + (way["smallest_gpu"] or "none"),
        )
    console.print(table)
