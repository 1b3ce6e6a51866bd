"""The report as one JSON value: everything the other forms are made from."""

from __future__ import annotations

import platform
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.report.won_back import won_back

if TYPE_CHECKING:
    from compress.config import Config
    from compress.data import Corpus
    from compress.source import ResolvedModel


def build_report(
    *,
    config: Config,
    source: ResolvedModel,
    corpus: Corpus,
    run: dict[str, Any],
    baseline: dict[str, Any],
    stages: list[dict[str, Any]],
    final: dict[str, Any],
    artifacts: list[dict[str, Any]],
    output: Path,
    seconds: float,
) -> dict[str, Any]:
    """Everything a run found out, JSON-able."""
    final = final | {
        "bytes_of_bf16_original": final["bytes"] / baseline["bytes_bf16"],
        "bytes_of_source_file": final["bytes"] / source.source_bytes if source.source_bytes else None,
        "ppl_ratio": final["ppl"] / baseline["ppl"],
    }
    return {
        "pipeline": config.name,
        "command": " ".join(["python -m compress", *map(shlex.quote, sys.argv[1:])]),
        "seed": config.seed,
        "versions": {"python": platform.python_version(), **run["versions"]},
        "device": run["device"],
        "threads": run["threads"],
        "machine": f"{platform.machine()} {platform.system()}",
        "model": {
            "name": source.name,
            "bytes": source.source_bytes,
            "note": source.source_note,
            "licence": source.licence,
        },
        "text": {"name": corpus.name, "origin": corpus.origin, "fingerprint": corpus.fingerprint},
        "protocol": protocol(config, baseline),
        "baseline": baseline,
        "stages": stages,
        "won_back": won_back(baseline, stages),
        "final": final,
        "artifacts": artifacts,
        "output": str(output),
        "seconds": seconds,
    }


def protocol(config: Config, baseline: dict[str, Any]) -> str:
    """One sentence without which a perplexity means nothing."""
    return (
        f"Held-out text joined as it stands, {baseline['windows']} + {baseline['second_windows']} non-overlapping "
        f"windows of at most {config.evaluate.window} tokens ({baseline['scored_tokens']} + {baseline['second_scored_tokens']} "
        "scored, the first of each window not), logits in the type of the weights, log-probabilities in fp32."
    )
