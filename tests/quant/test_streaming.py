"""Quantization without calibration: killed, it goes on with the tensor it stopped at; large tensors take few rows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compress.grids import grid_named
from compress.quant import encode
from tests.pipelines.helpers import tiny_run

KILLED = """
import os, signal, sys
import compress
import compress.writer as writer

step = writer.TensorWriter.step

def counted(self, name, facts=None):
    step(self, name, facts)
    counted.calls += 1
    if counted.calls == AFTER:
        self._wait()  # else the last line may be missing, and one tensor more is done again
        os.kill(os.getpid(), signal.SIGKILL)

counted.calls = 0
writer.TensorWriter.step = counted
compress.run(sys.argv[1:])
"""


def test_killed_while_quantizing_goes_on(tiny_llama: Path, text_file: Path, tmp_path: Path) -> None:
    quiet = ("evaluate.prompts=[]", "evaluate.speed=false")

    def command(name: str) -> list[str]:
        return tiny_run("nf4", tiny_llama, text_file, tmp_path / name, *quiet)

    def environment(name: str) -> dict[str, str]:
        return {**os.environ, "COMPRESS_CACHE": str(tmp_path / f"cache_{name}")}

    def artifact(name: str) -> dict[str, bytes]:
        folder = tmp_path / name / "artifacts/hf"
        return {f.name: f.read_bytes() for f in folder.iterdir() if f.name not in ("README.md", "manifest.json")}

    plain = [sys.executable, "-m", "compress"]
    subprocess.run([*plain, *command("undisturbed")], env=environment("undisturbed"), check=True, capture_output=True)
    dying = [sys.executable, "-c", KILLED.replace("AFTER", "17"), *command("killed")]
    died = subprocess.run(dying, env=environment("killed"), check=False, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    again = [*plain, *command("killed")]
    done = subprocess.run(again, env=environment("killed"), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "goes on at tensor 18 of" in done.stderr, done.stderr
    assert artifact("killed") == artifact("undisturbed")
    assert not any((tmp_path / "cache_killed/store/progress").iterdir())


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
