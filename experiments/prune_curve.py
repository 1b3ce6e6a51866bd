"""Perplexity against parameters for width, depth and both: pruned, compensated, and healed on a few tokens.

    python experiments/prune_curve.py --train FILE --heldout FILE --measured FILE --work DIR
        [--keeps 0.95 0.9 0.85 0.8 0.7 0.6] [--kinds width depth both] [--tokens 50000] [--set SETTING ...]

Every point is a run of `+pipeline=prune_heal`, with the further settings given. Rows go to
experiments/results/prune_curve.csv, and the curve to DIR/prune_curve.svg; a second run of the command goes on after the
rows of the same tokens and settings, and draws them all.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

from tables import append_row, read_rows, versions

import compress
from compress.errors import UserError

SHARES = {
    "width": {"layers": 0.0, "mlp": 1.0},
    "depth": {"layers": 1.0, "mlp": 0.0},
    "both": {"layers": 0.22, "mlp": 0.78},
}
"""What part of the removal each kind of group bears."""


def point(kind: str, keep: float, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one run: a stage each, on both texts."""
    report = compress.run(
        [
            "+pipeline=prune_heal",
            *(() if given.model is None else ("model=hf", f"model.path={given.model}")),
            "data=text",
            f"data.path={given.train}",
            f"data.heldout_path={given.heldout}",
            "data@second=text",
            f"second.path={given.heldout}",
            f"second.heldout_path={given.measured}",
            f"stages.prune.keep={keep}",
            *(f"stages.prune.share.{name}={part}" for name, part in SHARES[kind].items()),
            f"train.tokens={given.tokens}",
            *given.set,
            f"evaluate.tokens={1024 * given.windows}",
            "evaluate.prompts=[]",
            "evaluate.speed=false",
            "~export.hf",
            f"output={given.work / f'{kind}_{keep}'}",
        ]
    )
    base = report["baseline"]
    rows = []
    for stage in report["stages"]:
        found = stage["metrics"]
        row = {"kind": kind, "keep": keep, "after": stage["name"], "tokens": given.tokens}
        row |= {"settings": " ".join(given.set), "seconds": round(stage["seconds"])}
        row |= {"parameters": found["params"], "original_parameters": base["params"]}
        for text, prefix in (("heldout", ""), ("other", "second_")):
            row[f"{text}_ratio"] = found[f"{prefix}ppl"] / base[f"{prefix}ppl"]
            row[f"{text}_kl"] = found[f"{prefix}kl_to_teacher"]
        rows.append(row)
    return rows


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """The curve, one line for each kind and stage."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for color, kind in enumerate(SHARES):
        for after, style in (("prune", ":"), ("compensate", "--"), ("distill", "-")):
            points = [row for row in rows if row["kind"] == kind and row["after"] == after]
            points.sort(key=lambda row: float(row["parameters"]))
            x, y = ([float(row[name]) for row in points] for name in ("parameters", "heldout_ratio"))
            axes.plot(x, y, style, marker="o", color=f"C{color}", label=f"{kind}, {after}")
    axes.set(xlabel="parameters", ylabel="perplexity, relative to the original", yscale="log")
    axes.legend()
    figure.savefig(file)
    pyplot.close(figure)


def main() -> None:
    """A point after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--heldout", type=Path, required=True, help="of the same kind")
    parser.add_argument("--measured", type=Path, required=True, help="of another kind")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="the embedded one by default")
    parser.add_argument("--kinds", nargs="*", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--keeps", nargs="*", type=float, default=[0.95, 0.9, 0.85, 0.8, 0.7, 0.6])
    parser.add_argument("--tokens", type=int, default=50_000, help="of healing")
    parser.add_argument("--windows", type=int, default=8, help="of 1,024 tokens, to measure on")
    parser.add_argument("--set", nargs="*", default=[], help="such as prune@stages.prune=fisher train=default")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = [
        row
        for row in read_rows("prune_curve")
        if row["tokens"] == str(given.tokens) and row["settings"] == " ".join(given.set)
    ]
    done = {(row["kind"], float(row["keep"])) for row in rows}
    for keep, kind in product(given.keeps, given.kinds):
        if (kind, keep) in done:
            continue
        try:
            found = point(kind, keep, given)
        except UserError as error:
            print(f"{kind} {keep}: {error}", flush=True)
            continue
        for row in found:
            append_row("prune_curve", row | {"versions": versions(("torch", "transformers"))})
        rows += found
        last = found[-1]
        told = "  ".join(f"{t} {last[f'{t}_ratio']:.3f}x KL {last[f'{t}_kl']:.3f}" for t in ("heldout", "other"))
        print(f"{kind:6} {keep}  {last['parameters'] / 1e6:.1f}M  {told}", flush=True)
        draw(rows, given.work / "prune_curve.svg")


if __name__ == "__main__":
    main()
