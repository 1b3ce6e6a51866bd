"""Too little memory or disk is told before the work, or in words when it comes."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.errors import UserError
from tests.pipelines.helpers import tiny_run


def test_full_disk_is_foreseen(
    model: Path, text_file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="free"):
        compress.run(tiny_run("nf4", model, text_file, tmp_path / "out"))


def test_full_disk_while_writing(
    model: Path, text_file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.writer import TensorWriter

    def full(self: TensorWriter) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(self.folder))

    monkeypatch.setattr(TensorWriter, "close", full)
    with pytest.raises(UserError, match="disk is full"):
        compress.run(tiny_run("nf4", model, text_file, tmp_path / "out"))
    assert not any((cache / "store" / "unfinished").iterdir())


def test_too_little_memory_is_foreseen(
    model: Path, text_file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    memory = psutil.virtual_memory()._replace(total=1 << 20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with pytest.raises(UserError, match="memory"):
        compress.run(tiny_run("distill_only", model, text_file, tmp_path / "out"))


@pytest.mark.parametrize(
    ("settings", "device", "refused"),
    [
        ({}, "cpu", True),
        ({"accumulate": 2}, "cuda", True),
        ({"batch": 4, "strategy": "fsdp", "devices": 4}, "cuda", False),
    ],
)
def test_memory_is_that_of_the_prediction(
    settings: dict[str, Any], device: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.distill.stage import Distill
    from compress.estimate import fits
    from compress.prune.stage import Compensate, Prune
    from compress.train.settings import Strategy, Training

    for name in ("memory_bytes", "_gpu_bytes"):
        monkeypatch.setattr(fits, name, lambda: 10 << 30)
    strategy = Strategy(settings.pop("strategy", "auto"))
    stages = {
        "prune": Prune(),
        "compensate": Compensate(),
        "it": Distill(train=Training(**settings, strategy=strategy)),
    }
    little = {"peak_rss_bytes": 9 << 30, "gpu_bytes": 9 << 30}
    rows = {"prune": little, "compensate": little, "it": {"peak_rss_bytes": 18 << 30, "gpu_bytes": 18 << 30}}
    if not refused:
        fits.check_memory(rows, stages, device, {})
        return
    with pytest.raises(UserError, match=r"'it' needs about 18 GiB.*has 10 GiB"):
        fits.check_memory(rows, stages, device, {})


def test_out_of_memory(
    model: Path, text_file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.train import fit

    def exhausted(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(fit, "train", exhausted)
    with pytest.raises(UserError, match=r"train\.accumulate"):
        compress.run(tiny_run("distill_only", model, text_file, tmp_path / "out"))
