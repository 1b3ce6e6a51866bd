"""The same command again takes everything from the store; a killed one goes on and ends in the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import compress
from tests import warm
from tests.pipelines.helpers import tiny_run

QUIET = ("evaluate.prompts=[]", "evaluate.speed=false")


def artifact_bytes(folder: Path) -> dict[str, bytes]:
    """Weights, config and tokenizer of an artifact."""
    skipped = {"README.md", "manifest.json"}
    files = (file for file in sorted(folder.iterdir()) if file.is_file() and file.name not in skipped)
    return {file.name: file.read_bytes() for file in files}


def test_second_run_is_all_from_the_store(tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    first = compress.run(tiny_run("prune_distill", tiny_llama, text_file, tmp_path / "a", *QUIET))
    begin = time.monotonic()
    second = compress.run(tiny_run("prune_distill", tiny_llama, text_file, tmp_path / "b", *QUIET))
    assert time.monotonic() - begin < 10
    assert all(stage["cached"] for stage in second["stages"])
    assert [s["key"] for s in first["stages"]] == [s["key"] for s in second["stages"]]
    assert artifact_bytes(tmp_path / "a/artifacts/hf") == artifact_bytes(tmp_path / "b/artifacts/hf")


@pytest.mark.slow
def test_same_bytes_without_a_store(
    tiny_llama: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / f"cache_{name}"))
        compress.run(tiny_run("prune_distill", tiny_llama, text_file, tmp_path / name, *QUIET))
    assert artifact_bytes(tmp_path / "a/artifacts/hf") == artifact_bytes(tmp_path / "b/artifacts/hf")


def test_a_sweep_shares_its_prefix(tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    nf4 = compress.run(tiny_run("prune_only", tiny_llama, text_file, tmp_path / "a", "+quant@stages.q=nf4", *QUIET))
    int8 = compress.run(tiny_run("prune_only", tiny_llama, text_file, tmp_path / "b", "+quant@stages.q=int8", *QUIET))
    assert [stage["cached"] for stage in int8["stages"]] == [True, True, False]
    assert nf4["stages"][0]["key"] == int8["stages"][0]["key"]


@pytest.mark.slow
def test_what_matters_changes_the_key_and_what_does_not_does_not(
    tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path
) -> None:
    def key(name: str, *more: str) -> str:
        overrides = tiny_run("prune_only", tiny_llama, text_file, tmp_path / name, *QUIET, *more)
        return str(compress.run(overrides)["stages"][0]["key"])

    base = key("base")
    assert key("evaluation", "evaluate.tokens=256") == base
    assert key("export", "export.hf.probe_tokens=16") == base
    assert key("keep", "stages.prune.keep=0.7") != base
    assert key("seed", "seed=1") != base
    assert key("text", "data.seed=1") != base


@pytest.mark.parametrize(
    ("pipeline", "after"),
    [
        ("prune_distill", 0.2),
        pytest.param("prune_distill", 0.7, marks=pytest.mark.slow),
        pytest.param("qlora", 0.4, marks=pytest.mark.slow),
        pytest.param("qat_int8", 0.4, marks=pytest.mark.slow),
    ],
)
def test_killed_in_training_goes_on_and_ends_in_the_same_bytes(
    pipeline: str,
    after: float,
    tiny_llama: Path,
    text_file: Path,
    tmp_path: Path,
    fresh_cache: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = {"prune_distill": "distill", "qlora": "recover", "qat_int8": "quant"}[pipeline]
    more = [f"stages.{stage}.train.checkpoint_seconds=0.01"]
    more += ["train.tokens=24000", *(["~stages.quant", "~stages.recover"] if pipeline == "prune_distill" else [])]

    def asked(name: str) -> tuple[list[str], Path]:
        overrides = tiny_run(pipeline, tiny_llama, text_file, tmp_path / name, *QUIET, *more)
        return overrides, fresh_cache(tmp_path / f"cache_{name}")

    overrides, folder = asked("undisturbed")
    monkeypatch.setenv("COMPRESS_CACHE", str(folder))
    compress.run(overrides)
    overrides, folder = asked("killed")
    args, env = [sys.executable, "-m", "compress", *overrides], {**os.environ, "COMPRESS_CACHE": str(folder)}
    process = subprocess.Popen(args, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_progress(Path(env["COMPRESS_CACHE"]), after)
    process.send_signal(signal.SIGKILL)
    process.wait()
    shutil.rmtree(tmp_path / "killed")
    done = subprocess.run(args, env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "goes on at step" in done.stderr, done.stderr
    assert artifact_bytes(tmp_path / "killed/artifacts/hf") == artifact_bytes(tmp_path / "undisturbed/artifacts/hf")


def wait_for_progress(cache: Path, fraction: float) -> None:
    """Until the training has saved its progress at a step beyond `fraction` of its steps."""
    import torch

    steps = 24000 // 64 // 4
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        for file in (cache / "store" / "progress").glob("*/progress-*.ckpt"):
            try:
                if torch.load(file, map_location="cpu", weights_only=True)["global_step"] >= fraction * steps:
                    return
            except (FileNotFoundError, RuntimeError):
                continue
        time.sleep(0.05)
    raise AssertionError("no progress was saved")


def run_in(environment: dict[str, str], overrides: list[str]) -> None:
    """A run in a process of its own: forked from a server that has the environment of another test."""
    os.environ.clear()
    os.environ.update(environment)
    compress.run(overrides)


def test_two_processes_at_once_compute_a_stage_once(
    tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path
) -> None:
    asked = [tiny_run("prune_only", tiny_llama, text_file, tmp_path / name, *QUIET) for name in ("a", "b")]
    processes = [warm.context.Process(target=run_in, args=(dict(os.environ), overrides)) for overrides in asked]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    cached = [json.loads((tmp_path / n / "report.json").read_text())["stages"][0]["cached"] for n in ("a", "b")]
    assert sorted(cached) == [False, True]
