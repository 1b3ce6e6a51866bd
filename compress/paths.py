"""Where things are kept: one cache folder, `COMPRESS_CACHE` or the user's own (XDG)."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Root of everything that can be made again: models, texts, stage results, compiled kernels."""
    given = os.environ.get("COMPRESS_CACHE")
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "compress"


def quoted(value: str | Path) -> str:
    """A path as a value in an override of Hydra's, whatever is in it: parentheses, spaces, letters of any language."""
    return "'" + str(value).replace("'", "\\'") + "'"
