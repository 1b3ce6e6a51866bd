"""Quantization without calibration: killed, it goes on with the tensor it stopped at; large tensors take few rows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from compress.checkpoint import Checkpoint
from compress.data import Corpus
from compress.grids import grid_named
from compress.quant import encode
from compress.quant.stage import INT8, NF4
from compress.stage import DENSE, Context, Quiet
from compress.store import Store
from compress.writer import TensorWriter

STAGES = {"nf4": NF4, "int8": INT8}


class Said(Quiet):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def quantize(kind: str, model: Path, root: Path) -> tuple[dict[str, bytes], dict[str, Any], list[str]]:
    """The stage in its store, as the pipeline runs it: files of the result, its metrics, and what was said."""
    checkpoint, store, said = Checkpoint(model, frozenset({DENSE})), Store(root), Said()
    with store.locked("key"), store.writing("key") as folder:
        context = Context(
            folder=folder,
            scratch=store.scratch("key"),
            original=checkpoint,
            dense=None,
            corpus=Corpus("none", (), (), (), ""),
            own_text=lambda: torch.empty(0, 0),
            fabric=cast(Any, None),
            progress=said,
        )
        _, metrics = STAGES[kind]().run(checkpoint, context)
        store.commit("key", folder, {"metrics": metrics})
    files = {file.name: file.read_bytes() for file in store.folder("key").iterdir() if file.name != "record.json"}
    return files, metrics, said.lines


def dying(kind: str, model: Path, root: Path, after: int) -> None:
    """The same, killed once `after` tensors are finished."""
    step, calls = TensorWriter.step, []

    def counted(self: TensorWriter, name: str, facts: Any = None) -> None:
        step(self, name, facts)
        calls.append(name)
        if len(calls) == after:
            self._wait()  # else the last line may be missing, and one tensor more is done again
            os.kill(os.getpid(), signal.SIGKILL)

    TensorWriter.step = counted  # type: ignore[method-assign]
    quantize(kind, model, root)


@pytest.mark.parametrize(("kind", "after"), [("nf4", 17), ("int8", 39)])
def test_killed_while_quantizing_goes_on(kind: str, after: int, tiny_llama: Path, tmp_path: Path) -> None:
    """In the middle, and after the last tensor."""
    code = f"from tests.quant.test_streaming import *; dying({kind!r}, Path(sys.argv[1]), Path(sys.argv[2]), {after})"
    command = [sys.executable, "-c", code, str(tiny_llama), str(tmp_path / "killed")]
    died = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert died.returncode == -signal.SIGKILL, died.stderr
    files, metrics, said = quantize(kind, tiny_llama, tmp_path / "killed")
    assert said[0] == f"goes on at tensor {after + 1} of 39"
    expected = quantize(kind, tiny_llama, tmp_path / "undisturbed")
    assert (files, metrics, []) == expected
    assert not any((tmp_path / "killed/progress").iterdir())
    assert not any((tmp_path / "killed/unfinished").iterdir())


@pytest.mark.parametrize("name", ["nf4", "int8", "int4_g64", "int4_g32_asym", "int3_g64", "q4_0", "q5_1", "q8_0"])
def test_a_few_rows_at_a_time_are_the_same_codes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "CHUNK", 1000)
    weight = torch.randn(77, 384, generator=torch.Generator().manual_seed(0)).bfloat16()
    grid = grid_named(name)
    whole, pieces = grid.encode(weight), encode.encode_rows(grid, weight)
    assert pieces.shape == whole.shape
    assert pieces.parts.keys() == whole.parts.keys()
    assert all(torch.equal(pieces.parts[part], whole.parts[part]) for part in whole.parts)


def test_relative_error_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "CHUNK", 1000)
    weight = torch.randn(77, 384, generator=torch.Generator().manual_seed(0)).bfloat16()
    decoded = (weight + 0.1 * torch.randn(77, 384, generator=torch.Generator().manual_seed(1))).bfloat16()
    expected = (weight.double() - decoded.double()).norm() / weight.double().norm()
    assert encode.relative_error(weight, decoded) == pytest.approx(float(expected), rel=1e-5)
    assert encode.relative_error(torch.zeros(3, 4), torch.zeros(3, 4)) == 0
