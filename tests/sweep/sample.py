"""Finished runs of a sweep made by hand, as folders."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

from compress.report.write import finite
from tests.report.sample import full

KEEP = (0.6, 0.7, 0.8, 0.9)
QUANT = {"int8": (1.0, 0.02, 0.8), "qat_int8": (1.0, 0.005, 0.8), "nf4": (0.75, 0.1, 1.2)}
"""Quantizer -> size against int8, KL it adds, milliseconds per token against int8."""


def run(number: int, keep: float, quant: str) -> dict[str, Any]:
    """What one run reports."""
    report = copy.deepcopy(full())
    size, added, pace = QUANT[quant]
    kl = 0.05 * math.exp(6 * (0.95 - keep)) + added
    report["command"] = (
        f"python -m compress stages.prune.keep={keep} quant@stages.quant={quant} +pipeline=prune_distill +sweep=pareto"
    )
    report["seconds"] = 60.0 + 10 * number
    report["final"] |= {
        "kl_to_teacher": kl,
        "second_kl_to_teacher": 2 * kl - added,
        "ppl": 20 * math.exp(kl),
        "top1_agreement": math.exp(-kl),
        "bytes": round((60 + 80 * keep) * size * 1e6),
        "params": round((28 + 106 * keep) * 1e6),
        "speed": {"prefill_tokens_per_second": 900.0, "decode_tokens_per_second": 60 / (pace * (0.3 + keep))},
    }
    report["artifacts"][0]["metrics"] = {k: v for k, v in report["final"].items() if k not in ("speed", "answers")}
    return report


def write(folder: Path, failed: bool = True) -> None:
    """Twelve runs, one of them not verified if `failed`, and then one that failed and one that was killed."""
    number = 0
    for keep in KEEP:
        for quant in QUANT:
            report = run(number, keep, quant)
            report["artifacts"][0]["verified"] = not (failed and number == 5)
            place(folder / str(number), report["command"].split()[3:], number, report=report)
            number += 1
    if failed:
        told = ["stages.prune.keep=0.01", "quant@stages.quant=nf4", "+pipeline=prune_distill"]
        place(folder / str(number), told, number, state="failed", problem="keep=0.01 leaves <nothing>.")
        place(folder / str(number + 1), [*told, "seed=1"], number + 1, state="running")


def place(
    folder: Path, overrides: list[str], number: int, *, report: dict[str, Any] | None = None, **record: str
) -> None:
    folder.mkdir(parents=True)
    known = {"number": number, "overrides": overrides, "alone": True, "process": 1, "state": "done"}
    (folder / "run.json").write_text(json.dumps(known | record))
    if report is not None:
        (folder / "report.json").write_text(json.dumps(finite(report), allow_nan=False))
