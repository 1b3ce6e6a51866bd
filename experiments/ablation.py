"""What each part of the main job is worth: the same job with one part changed, on the embedded model.

    python experiments/ablation.py [NAME ...] [-- OVERRIDE ...]

Stages that variants share are computed once. Rows go to experiments/results/ablation.csv, with versions and threads.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import compress

VARIANTS: dict[str, list[str]] = {
    "default": [],
    "no text of its own": ["own_text.tokens=0"],
    "no compensation": ["~stages.compensate"],
    "distill at 5e-4": ["stages.distill.train.rate=5e-4"],
    "distill at 2e-4": ["stages.distill.train.rate=2e-4"],
    "4 bits rounded, not calibrated": ["quant@stages.quant=nf4"],
    "adapters from zero": ["stages.recover.start=zero"],
    "adapters from the plain residual": ["stages.recover.start=residual"],
}
RESULTS = Path(__file__).parent / "results" / "ablation.csv"
SKIPPED = ["evaluate.prompts=[]", "evaluate.speed=false"]


def rows_of(name: str, report: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per stage."""
    shared = {
        "variant": name,
        "torch": report["versions"]["torch"],
        "transformers": report["versions"]["transformers"],
        "threads": report["threads"],
    }
    figures = ("ppl", "kl_to_teacher", "second_ppl", "second_kl_to_teacher", "bytes")
    return [
        shared
        | {"stage": stage["name"], "seconds": round(stage["seconds"])}
        | {f: stage["metrics"][f] for f in figures}
        for stage in report["stages"]
    ]


def main() -> None:
    """Run the named variants, all by default."""
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    names, more = arguments[:split] or list(VARIANTS), arguments[split + 1 :]
    for name in names:
        report = compress.run(["+pipeline=prune_distill", *SKIPPED, *VARIANTS[name], *more])
        rows = rows_of(name, report)
        for row in rows:
            print(f"{name:34} {row['stage']:12} KL {row['kl_to_teacher']:.3f}  other {row['second_kl_to_teacher']:.3f}")
        new = not RESULTS.exists()
        with RESULTS.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            if new:
                writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
