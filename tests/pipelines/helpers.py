"""Runs on tiny models: small enough for seconds, real in every stage."""

from __future__ import annotations

from pathlib import Path

FAST = (
    "evaluate.tokens=512",
    "evaluate.window=64",
    "evaluate.answer_tokens=4",
    "evaluate.prefill_tokens=16",
    "evaluate.decode_tokens=2",
    "train.tokens=2000",
    "train.length=64",
    "own_text.tokens=512",
    "threads=1",
)


def tiny_run(pipeline: str, model: Path, text: Path, output: Path, *more: str) -> list[str]:
    """Overrides for a run of `pipeline` on a tiny model and text."""
    named = [f"model.path={model}", f"data.path={text}", f"output={output}"]
    return [f"+pipeline={pipeline}", "model=hf", "data=text", *named, *FAST, *more]
