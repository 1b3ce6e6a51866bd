"""The file the model came in, measured where what was made of it is measured: which of the two is worth having?"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import UserError
from compress.export.deliver import EVALUATED, speed_prompt
from compress.export.fresh import FreshProcess, ReloadError
from compress.keys import module_version
from compress.store import content_key

if TYPE_CHECKING:
    from compress.evaluate.evaluator import Evaluator
    from compress.source import ResolvedModel

RUNTIME = "llama_cpp"
NAME = "the file it came in"


def measured_source_file(
    source: ResolvedModel, weights: str, artifacts: Sequence[dict[str, Any]], evaluator: Evaluator, threads: int
) -> dict[str, Any] | None:
    """Size, quality and speed of a GGUF source in llama.cpp, if an artifact has been measured there too.

    Args:
        source: the model the run starts from.
        weights: identifies its weights.
        artifacts: entries of the report.
        evaluator: measures on the run's texts.
        threads: CPU threads.

    Returns:
        `name`, `runtime`, `bytes`, `load_seconds`, `speed`, `metrics`; None if there is nothing to compare, or the file
        cannot be had any more: that is said, and costs the run nothing.
    """
    wanted = any(artifact["runtime"] == RUNTIME and artifact["metrics"] for artifact in artifacts)
    if source.gguf is None or not wanted:
        return None
    asked = {
        "weights": weights,
        "evaluate": {name: getattr(evaluator.settings, name) for name in EVALUATED},
        "runtime": module_version(RUNTIME),
    }
    key = content_key({"kind": "source file", "asked": asked, "inputs": evaluator.inputs})
    found = evaluator.store.recall("proofs", key)
    if found is None:
        try:
            found = _measure(source.gguf, evaluator, threads)
        except (ReloadError, UserError, OSError) as error:
            evaluator.progress.say(f"{NAME} is not measured: {error}")
            return None
        evaluator.store.remember("proofs", key, found)
    return {"name": NAME, "runtime": RUNTIME, **found}


def _measure(unpack: Any, evaluator: Evaluator, threads: int) -> dict[str, Any]:
    longest = max(windows.shape[1] for windows in evaluator.windows.values())
    prompt, decode = speed_prompt(evaluator, longest)
    evaluator.progress.say(f"{NAME}, in the same runtime")
    with tempfile.TemporaryDirectory() as folder:
        size = unpack(Path(folder)).stat().st_size
        with FreshProcess(RUNTIME, Path(folder), threads, max(longest, len(prompt) + decode)) as process:
            speed = process.speed(prompt, decode) if evaluator.settings.speed else {}
            metrics = evaluator.quality_of(process.logits)
            return {
                "bytes": size,
                "load_seconds": process.load_seconds,
                "speed": speed,
                "metrics": metrics | {"bytes": size},
            }
