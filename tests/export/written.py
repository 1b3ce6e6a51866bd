"""A model written in a format, for the tests of formats with a runtime of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from compress.checkpoint import Checkpoint
from compress.export.base import Export
from compress.runtime.loading import load_model
from compress.stage import DENSE
from tests.models import save


def load(checkpoint: Checkpoint, dtype: torch.dtype | None) -> object:
    return load_model(checkpoint.folder, dtype=dtype)


def exported(family: str, overrides: Mapping[str, object], folder: Path, settings: Export) -> Checkpoint:
    """The model; its artifact is in `folder`/artifact."""
    save(family, folder / "model", **overrides)
    checkpoint = Checkpoint(folder / "model", frozenset({DENSE}))
    settings.check(checkpoint)
    settings.write(checkpoint, folder / "artifact")
    return checkpoint
