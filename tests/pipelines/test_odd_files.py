"""Checkpoints as some are stored: a tied head written beside its embedding, weights in several files."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import compress
from compress.errors import UserError
from compress.writer import INDEX, TensorWriter
from tests.models import save
from tests.pipelines.helpers import tiny_run

QUIET = ("evaluate.prompts=[]", "evaluate.speed=false")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def with_head(tmp_path: Path) -> Path:
    """A tied model whose file holds the head too."""
    folder = tmp_path / "model"
    save("llama", folder, tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    assert HEAD not in weights
    save_file({**weights, HEAD: weights[EMBEDDING].clone()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def names(folder: Path) -> set[str]:
    found: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            found |= set(opened.keys())
    return found


def test_a_tied_head_is_written_once(with_head: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    most = 260_000
    more = [*QUIET, "stages.prune.keep=null", f"stages.prune.bytes={most}", "stages.distill.embeddings=true"]
    report = compress.run(tiny_run("prune_heal", with_head, text_file, tmp_path / "out", *more))
    (artifact,) = report["artifacts"]
    assert artifact["verified"], artifact["error"]
    written = names(Path(artifact["path"]))
    assert EMBEDDING in written and HEAD not in written
    assert report["stages"][0]["bytes"] <= most


def test_a_tied_head_of_other_numbers_is_refused(with_head: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    weights = load_file(with_head / "model.safetensors")
    weights[HEAD][3, 5] += 1
    save_file(weights, with_head / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="says that the head is the embedding"):
        compress.run(tiny_run("nf4", with_head, text_file, tmp_path / "out", *QUIET))


def test_adapters_on_a_base_in_several_files(
    tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.quant.encode.TensorWriter", partial(TensorWriter, shard_bytes=60_000))
    report = compress.run(tiny_run("qlora", tiny_llama, text_file, tmp_path / "out", *QUIET))
    (artifact,) = report["artifacts"]
    folder = Path(artifact["path"])
    assert artifact["verified"], artifact["error"]
    assert (folder / INDEX).is_file() and len(list(folder.glob("model-*.safetensors"))) > 1
