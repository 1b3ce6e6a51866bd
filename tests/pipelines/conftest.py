"""What several files of tests of whole runs begin with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    return folder
