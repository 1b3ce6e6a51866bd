"""Quantized checkpoints of tiny models, written as the stages write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compress.checkpoint import Checkpoint
from compress.grids import grid_named
from compress.quant.encode import Placement, encode_checkpoint
from compress.stage import DENSE, Context, Metrics, Quiet
from tests.models import save


def context_for(folder: Path, original: Checkpoint) -> Context:
    """Enough for a stage that reads no text."""
    folder.mkdir(exist_ok=True)
    nothing: Any = None
    empty = torch.zeros(0, 8, dtype=torch.long)
    return Context(folder, folder, original, None, nothing, lambda: empty, nothing, Quiet())


def quantized(
    name: str, folder: Path, grids: Mapping[str, str], activations: str | None = None, **overrides: Any
) -> tuple[Checkpoint, Metrics, Any]:
    """(checkpoint, metrics, dense model) of a tiny model with module path -> grid name."""
    _, model = save(name, folder / "dense", **overrides)
    dense = Checkpoint(folder / "dense", frozenset({DENSE}))
    placement = Placement({path: grid_named(grid) for path, grid in grids.items()}, activations)
    checkpoint, metrics = encode_checkpoint(dense, placement, frozenset(), context_for(folder / "quantized", dense))
    return checkpoint, metrics, model
