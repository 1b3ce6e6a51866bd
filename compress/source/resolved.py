"""A resolved model: the folder a run starts from, and what its report says about where that came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ResolvedModel:
    """A checked Hugging Face folder: config.json, safetensors, tokenizer."""

    folder: Path
    name: str
    source_bytes: int
    """Size of the weights in the form they came in: what a user had before, next to which sizes are given too."""
    source_note: str
    """What a reader of the report should know about that form; may be empty."""
    licence: str
    """As the model's own card names it; empty if it does not."""
    hub_id: str = ""
    """Its name on the Hugging Face hub, if it came from there."""
    commit: str = ""
    """And which version of it."""
    gguf: Callable[[Path], Path] | None = None
    """Writes the GGUF file it came in into a folder, if it came in one."""
