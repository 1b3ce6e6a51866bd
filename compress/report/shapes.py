"""What a search over shapes tried, what pruning in steps left at every step, which grids were chosen: rows for every
form of the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from compress.report import format as form

KINDS = {"layers": "layers", "mlp": "neurons", "heads": "KV groups", "query_heads": "query heads", "hidden": "width"}
CANDIDATES = ("candidate", *KINDS.values(), "kept", "KL compensated", "KL healed", "tokens", "time")
CUTS = ("step", *KINDS.values(), "kept", "tokens", "last KL of training")


class Table(NamedTuple):
    """One table with its title and what is to be said below it."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """Of all stages that have something to show."""
    for stage in report["stages"]:
        details = stage["details"]
        if details.get("candidates"):
            yield candidates(stage["name"], details)
        if details.get("chosen") and details.get("sensitivity"):
            yield grids(stage["name"], details["chosen"])
        if details.get("cuts"):
            yield Table(
                f"{stage['name']}: step by step",
                CUTS,
                [
                    (str(step), *widths(cut), form.number(cut["train_tokens"]), f"{cut['last_kl']:.3f}")
                    for step, cut in enumerate(details["cuts"], 1)
                ],
                "Kept: of the parameters that are not embedding or head.",
            )


def grids(name: str, chosen: Mapping[str, Mapping[str, Any]]) -> Table:
    """How many tensors of each kind went to each grid, and what that is expected to cost."""
    counts: dict[str, dict[str, int]] = {}
    losses: dict[str, float] = {}
    for path, choice in chosen.items():
        kind = path.rpartition(".")[2]
        counts.setdefault(kind, {}).setdefault(choice["grid"], 0)
        counts[kind][choice["grid"]] += 1
        losses[kind] = losses.get(kind, 0.0) + choice["loss"]
    used = sorted({choice["grid"] for choice in chosen.values()})
    rows = [
        (kind, *(str(counts[kind].get(grid, "")) for grid in used), f"{losses[kind]:.4f}")
        for kind in sorted(counts, key=lambda kind: -losses[kind])
    ]
    note = "Expected KL: of a second-order estimate on calibration text, summed over the tensors; worst kind first."
    return Table(f"{name}: grids chosen", ("tensors", *used, "expected KL"), rows, note)


def candidates(name: str, details: Mapping[str, Any]) -> Table:
    """Best first."""
    rows = [
        (
            row["name"] + (" (chosen)" if row["name"] == details["chosen"] else ""),
            *widths(row),
            f"{row['kl_before']:.3f}",
            f"{row['kl_healed']:.3f}",
            form.number(row["train_tokens"]),
            form.duration(row["seconds"]),
        )
        for row in sorted(details["candidates"], key=lambda row: row["kl_healed"])
    ]
    note = f"KL to the original on {details['judged_on']} tokens that no stage trains on and no other figure uses."
    if details["refused"]:
        note += " Not tried: " + "; ".join(f"{other}: {why}" for other, why in details["refused"].items())
    return Table(f"{name}: shapes tried", CANDIDATES, rows, note)


def widths(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Sizes and what they keep."""
    return (*(str(row["widths"][kind]) for kind in KINDS), f"{100 * row['kept_fraction']:.1f}%")
