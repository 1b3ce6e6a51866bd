"""The report as one JSON value: everything the other forms are made from."""

from __future__ import annotations

import platform
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.checkpoint import Checkpoint
from compress.hardware import native
from compress.keys import module_version
from compress.report.won_back import won_back

if TYPE_CHECKING:
    from compress.config import Config
    from compress.data import Corpus
    from compress.source import ResolvedModel


@dataclass(frozen=True)
class Facts:
    """What the pipeline knows at the end of a run."""

    config: Config
    overrides: list[str]
    """As typed, or as given to `compress.run`; in a sweep those of this job."""
    source: ResolvedModel
    weights: str
    """Identifies the weights the run began with."""
    teacher: str | None
    """Name of the model everything is compared with, where it is not the one the run began with."""
    corpus: Corpus
    second: Corpus
    run: dict[str, Any]
    baseline: dict[str, Any]
    student: dict[str, Any] | None
    """Of the model the run began with, where that is not the one everything is compared with."""
    stages: list[dict[str, Any]]
    behaviour: dict[str, Any]
    """Of the last model, in the pipeline."""
    artifacts: list[dict[str, Any]]
    source_file: dict[str, Any] | None
    """What the model came in, measured beside them."""
    left_out: dict[str, str]
    """Exports that were not written, and why."""
    output: Path
    seconds: float


def build_report(facts: Facts) -> dict[str, Any]:
    """Everything a run found out, JSON-able."""
    config, source, baseline, final = facts.config, facts.source, facts.baseline, final_figures(facts)
    stored = Checkpoint(source.folder, frozenset()).dtype_name
    return {
        "pipeline": config.name,
        "command": " ".join(["python -m compress", *map(shlex.quote, facts.overrides)]),
        "seed": config.seed,
        "versions": versions(facts),
        "device": facts.run["device"],
        "threads": facts.run["threads"],
        "machine": f"{platform.machine()} {platform.system()}",
        "model": {
            "name": source.name,
            "hub_id": source.hub_id,
            "commit": source.commit,
            "weights": facts.weights,
            "bytes": source.source_bytes,
            "note": source.source_note,
            "licence": source.licence,
        },
        "teacher": facts.teacher,
        "text": text_facts(facts.corpus),
        "second_text": text_facts(facts.second),
        "protocol": protocol(baseline, stored if facts.run["device"] == "cpu" else "float32"),
        "baseline": baseline,
        "student": facts.student,
        "stages": facts.stages,
        "won_back": won_back(baseline, facts.stages, facts.student),
        "final": final
        | {
            "bytes_of_bf16_original": final["bytes"] / baseline["bytes_bf16"],
            "bytes_of_source_file": final["bytes"] / source.source_bytes if source.source_bytes else None,
        }
        | ({"ppl_ratio": final["ppl"] / baseline["ppl"]} if "ppl" in final else {}),
        "artifacts": facts.artifacts,
        "source_file": facts.source_file,
        "left_out": facts.left_out,
        "output": str(facts.output),
        "seconds": facts.seconds,
    }


def final_figures(facts: Facts) -> dict[str, Any]:
    """Of what ships: the first artifact that was measured, as fast as its runtime makes it, else the last stage."""
    first = next((artifact for artifact in facts.artifacts if artifact["metrics"]), None)
    if first is None:
        last = facts.stages[-1]["metrics"] if facts.stages else facts.baseline
        return last | facts.behaviour
    return first["metrics"] | facts.behaviour | ({"speed": first["speed"]} if first["speed"] else {})


def text_facts(corpus: Corpus) -> dict[str, str]:
    """What identifies a text."""
    return {"name": corpus.name, "origin": corpus.origin, "fingerprint": corpus.fingerprint}


def versions(facts: Facts) -> dict[str, str]:
    """Of Python, of this package, of the libraries behind the weights, and of the runtimes that were asked."""
    runtimes = {artifact["runtime"] for artifact in facts.artifacts} - facts.run["versions"].keys() - {"compress"}
    known = {"python": platform.python_version(), "compress": module_version("compress"), **facts.run["versions"]}
    return known | {name: module_version(name) for name in sorted(runtimes)}


def protocol(baseline: dict[str, Any], stored: str) -> str:
    """One sentence without which a perplexity means nothing."""
    if "ppl" not in baseline:
        return "Nothing was measured (evaluate.measure=false): how far the result is from the original is not known."
    windows = f"{baseline['windows']} + {baseline['second_windows']}"
    computed = "the type of the weights" if native(stored) else f"fp32 (this processor has no products in {stored})"
    window = baseline["scored_tokens"] // baseline["windows"] + 1
    scored = f"{baseline['scored_tokens']} + {baseline['second_scored_tokens']}"
    return (
        f"Held-out text joined as it stands, {windows} non-overlapping windows of {window} "
        f"tokens ({scored} scored, the first of each window not), logits in {computed}, log-probabilities in fp32."
    )
