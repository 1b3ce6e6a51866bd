"""Checkpoints as some are stored: a tied head beside its embedding, weights in several files, rows of padding."""

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


@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
@pytest.mark.parametrize(
    ("pipeline", "more"),
    [("distill_only", ()), ("distill_only", ("stages.distill.teacher_store=topk",)), ("prune_heal", ())],
    ids=["online", "stored", "compensated"],
)
def test_padding_rows_of_a_teacher_change_nothing(
    pipeline: str,
    more: tuple[str, ...],
    tied: bool,
    text_file: Path,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Qwen2.5-7B has more rows than the 0.5B, and the same words. What stands in them does not matter."""
    from transformers import AutoModelForCausalLM

    student, plain, padded = (tmp_path / name for name in ("student", "plain", "padded"))
    # compensation wants a teacher of the student's shape
    save("llama", student, hidden_size=32 if pipeline == "distill_only" else 64, tie_word_embeddings=tied)
    save("llama", plain, tie_word_embeddings=tied)
    save("llama", padded, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_pretrained(padded)
    rows = model.config.vocab_size
    model.resize_token_embeddings(rows + 80, mean_resizing=False)
    for parameter in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
        parameter.data[rows:] = 3.0  # likelier than any word, if they counted
    model.save_pretrained(padded)
    found = {}
    for teacher in (plain, padded):
        monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / f"cache_{teacher.name}"))
        named = ["+model@teacher=hf", f"teacher.path={teacher}", "own_text.tokens=0"]
        run = tiny_run(pipeline, student, text_file, tmp_path / f"out_{teacher.name}", *QUIET, *named, *more)
        found[teacher] = compress.run(run)
    ours, like = found[padded], found[plain]
    assert ours["artifacts"][0]["verified"]
    assert ours["artifacts"][0]["sha256"] == like["artifacts"][0]["sha256"]
    for key in ("ppl", "kl_to_teacher", "top1_agreement", "second_kl_to_teacher"):
        assert ours["final"][key] == like["final"][key]
        assert ours["baseline"][key] == like["baseline"][key]
