"""One artifact from checkpoint to proof: written, reloaded in a fresh process, measured as delivered."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.checkpoint import ADAPTER_CONFIG, Checkpoint, tensor_digests, weights_key
from compress.errors import UserError
from compress.export import probe
from compress.export.base import Expectation, Export
from compress.export.fresh import FreshProcess, ReloadError
from compress.export.verify import RoundTrip, verify
from compress.keys import module_version, stage_fields
from compress.store import content_key, file_digest

if TYPE_CHECKING:
    from torch import Tensor

    from compress.evaluate.evaluator import Evaluator

PART = ".unfinished"
VERSION = 2
"""Raised when the same artifact would be judged otherwise."""
EVALUATED = ("tokens", "window", "speed", "prefill_tokens", "decode_tokens")
TEXTS = (
    "The year 2024 had 366 days; 1,234.5 is a number.",
    "Größe, naïve, 東京, emoji 🙂 and a tab\there.",
    "def f(x):\n    return x  # two  spaces\r\nnext line\n\n\nend ",
    "It's what they'll say: don't, we've, I'm",
)
"""Where tokenizers differ, if they do."""


def deliver(
    name: str, settings: Export, checkpoint: Checkpoint, folder: Path, evaluator: Evaluator, threads: int
) -> dict[str, Any]:
    """Write the artifact into `folder`, prove it and measure it.

    Returns:
        Its entry in the report.
    """
    part = folder.with_name(folder.name + PART)
    shutil.rmtree(part, ignore_errors=True)
    with evaluator.progress.bar(f"writing {settings.format}", 1) as advance:
        settings.write(checkpoint, part)
        advance(1)
    part.rename(folder)
    files = settings.weight_files(folder)
    digest = weights_key(tensor_digests(folder) or {file.name: file_digest(file) for file in files})
    weights = digest + (file_digest(folder / "config.json") if settings.plain_transformers else "")
    artifact = Checkpoint(folder, checkpoint.traits, checkpoint.name)
    size = sum(file.stat().st_size for file in files)
    proof = _proof(settings, checkpoint, folder, evaluator, weights, threads)
    if settings.plain_transformers and proof["loaded"]:
        proof["metrics"] = evaluator.quality(artifact, weights, plain=True)
    elif proof["metrics"]:
        proof["metrics"] = evaluator.size(checkpoint) | {"bytes": size} | proof["metrics"]
    return {
        "name": name,
        "format": settings.format,
        "path": str(folder),
        "bytes": size,
        "sha256": digest,
        "adapter": (folder / ADAPTER_CONFIG).is_file(),
        "usage": settings.how_to_load(checkpoint),
        **proof,
    }


def failed(name: str, settings: Export, checkpoint: Checkpoint, folder: Path, error: Exception) -> dict[str, Any]:
    """The entry in the report of an artifact that could not be written."""
    said = f"{error.problem} {error.hint}" if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    said = " ".join(said.split())[:500].rstrip(". ")
    return {
        "name": name,
        "format": settings.format,
        "path": str(folder),
        "bytes": 0,
        "sha256": "",
        "adapter": False,
        "usage": settings.how_to_load(checkpoint),
        "runtime": settings.runtime(checkpoint),
        "cached": False,
        **RoundTrip.failed(f"it could not be written: {said}", loaded=False).as_dict(),
        "speed": {},
        "metrics": {},
    }


def _proof(
    settings: Export, checkpoint: Checkpoint, folder: Path, evaluator: Evaluator, weights: str, threads: int
) -> dict[str, Any]:
    """The round trip, speed and figures in the runtime; or what is remembered of the same bytes and versions."""
    runtime = settings.runtime(checkpoint)
    if not evaluator.settings.measure:
        return {"runtime": runtime, "cached": False, **RoundTrip.left_out().as_dict(), "speed": {}, "metrics": {}}
    ids = evaluator.windows[""][:1, : min(settings.probe_tokens, settings.positions or settings.probe_tokens)]
    expectation = settings.expect(checkpoint, ids, evaluator.load_as)
    probe.keep(folder, ids, expectation, {"format": settings.format, "runtime": runtime})
    asked = {
        "weights": weights,
        "fields": stage_fields(settings),
        "evaluate": {name: getattr(evaluator.settings, name) for name in EVALUATED},
        "runtime": {name: module_version(name) for name in (runtime, *settings.packages)},
        "version": VERSION,
    }
    key = content_key({"kind": "proof", "asked": asked, "inputs": evaluator.inputs})
    found = evaluator.store.recall("proofs", key)
    cached = found is not None
    if found is None:
        found = _ask(settings, runtime, folder, expectation, ids, evaluator, threads)
        if found["verified"]:
            evaluator.store.remember("proofs", key, found)
    return {"runtime": runtime, "cached": cached, **found}


def _ask(
    settings: Export,
    runtime: str,
    folder: Path,
    expectation: Expectation,
    ids: Tensor,
    evaluator: Evaluator,
    threads: int,
) -> dict[str, Any]:
    """Reload and ask everything."""
    speed, metrics = {}, {}
    window = max(windows.shape[1] for windows in evaluator.windows.values())
    longest = min(window, settings.positions or window)
    if longest < window:
        evaluator.progress.say(f"it holds {longest} tokens: no perplexity in windows of {window} is measured there")
    prompt, decode = speed_prompt(evaluator, longest)
    try:
        with FreshProcess(runtime, folder, threads, max(longest, len(prompt) + decode)) as process:
            with evaluator.progress.bar("reloaded in a fresh process: comparing", 2) as advance:
                told = verify(process, expectation, ids)
                advance(1)
                if settings.own_tokenizer and told.verified:
                    told = _same_tokens(told, process, evaluator.tokenizer)
                if evaluator.settings.speed and told.loaded:
                    speed = process.speed(prompt, decode)
                advance(1)
            if told.loaded and not settings.plain_transformers and longest == window:
                metrics = evaluator.quality_of(process.logits)
    except ReloadError as error:
        told = RoundTrip.failed(f"the runtime cannot run it: {error}", loaded=False)
    return {**told.as_dict(), "speed": speed, "metrics": metrics}


def speed_prompt(evaluator: Evaluator, longest: int) -> tuple[Tensor, int]:
    """The prompt whose speed is measured, and how many tokens after it, within `longest`."""
    decode = min(evaluator.settings.decode_tokens, longest // 2)
    text = evaluator.windows[""].flatten()
    return text[: min(evaluator.settings.prefill_tokens, longest - decode)], decode


def _same_tokens(told: RoundTrip, process: FreshProcess, tokenizer: Any) -> RoundTrip:
    """Fail an artifact whose own tokenizer cuts texts otherwise."""
    for text, found in zip(TEXTS, process.tokens(list(TEXTS)), strict=True):
        if found != tokenizer(text, add_special_tokens=False)["input_ids"]:
            return replace(told, verified=False, error=f"its tokenizer cuts {text!r} into other tokens")
    return told
