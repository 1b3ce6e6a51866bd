"""The GGUF file a model came in, measured beside the artifacts of a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import compress
from compress.export.gguf.settings import FILE
from compress.source.huggingface import HuggingFaceModel
from tests.pipelines.helpers import tiny_run

pytest.importorskip("gguf", reason="pip install 'compress[runtimes]'")
pytest.importorskip("llama_cpp", reason="pip install 'compress[runtimes]'")

GGUF = ["+export@export.gguf=gguf", "export.gguf.type=q8_0", "evaluate.prompts=[]"]


def comes_in(monkeypatch: pytest.MonkeyPatch, unpack: Callable[[Path], Path]) -> None:
    """Let models of folders come in a GGUF file."""
    resolve = HuggingFaceModel.resolve
    monkeypatch.setattr(HuggingFaceModel, "resolve", lambda model: replace(resolve(model), gguf=unpack))


def test_it_is_measured_where_an_artifact_is(
    tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compress.run(tiny_run("prune_only", tiny_llama, text_file, tmp_path / "first", *GGUF))
    assert first["source_file"] is None
    artifact = next(a for a in first["artifacts"] if a["name"] == "gguf")
    written = Path(artifact["path"]) / FILE
    comes_in(monkeypatch, lambda folder: Path(shutil.copy(written, folder)))
    report = compress.run(tiny_run("prune_only", tiny_llama, text_file, tmp_path / "second", *GGUF))
    found = report["source_file"]
    assert found["bytes"] == found["metrics"]["bytes"] == written.stat().st_size
    # the same file in the same runtime
    assert found["metrics"]["ppl"] == pytest.approx(artifact["metrics"]["ppl"], rel=1e-4)
    assert found["speed"]["decode_tokens_per_second"] > 0
    page = (tmp_path / "second" / "report.html").read_text()
    assert "the file it came in" in page

    def remembered(_: Path) -> Path:
        raise AssertionError("it is measured once")

    comes_in(monkeypatch, remembered)
    again = compress.run(tiny_run("prune_only", tiny_llama, text_file, tmp_path / "third", *GGUF))
    assert again["source_file"] == found


def test_a_file_that_is_gone_costs_nothing(
    tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: Path) -> Path:
        raise OSError("no such wheel")

    comes_in(monkeypatch, gone)
    report = compress.run(tiny_run("prune_only", tiny_llama, text_file, tmp_path / "out", *GGUF))
    assert report["source_file"] is None
    assert all(artifact["verified"] for artifact in report["artifacts"])
