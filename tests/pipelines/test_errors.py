"""Mistakes a user can make: one message that says what to type, exit status 2, nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import compress
from compress.errors import UserError
from tests.models import save
from tests.pipelines.helpers import tiny_run


def missing(model: Path) -> None:
    shutil.rmtree(model)


def no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def pickle_only(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    no_weights(model)


def truncated(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def not_a_number(model: Path) -> None:
    state = load_file(model / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})


def no_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def other_architecture(model: Path) -> None:
    config = json.loads((model / "config.json").read_text()) | {"model_type": "bloom"}
    (model / "config.json").write_text(json.dumps(config))


def fewer_tensors(model: Path) -> None:
    state = load_file(model / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})


SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (missing, "model"),
    "no weights": (no_weights, "safetensors"),
    "pickle only": (pickle_only, "safetensors"),
    "truncated": (truncated, "model.safetensors"),
    "NaN": (not_a_number, "model.layers.1.mlp.up_proj.weight"),
    "no tokenizer": (no_tokenizer, "tokenizer"),
    "other architecture": (other_architecture, "Qwen3"),
    "fewer tensors": (fewer_tensors, "model.layers.1.mlp.up_proj.weight"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_model(case: str, model: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    spoil, said = SPOILED[case]
    spoil(model)
    with pytest.raises(UserError) as caught:
        compress.run(tiny_run("nf4", model, text_file, tmp_path / "out"))
    assert said in str(caught.value)
    assert not (tmp_path / "out" / "artifacts").exists()


def test_a_grid_that_no_layer_fits_is_said_before_the_work(text_file: Path, tmp_path: Path, cache: Path) -> None:
    save("llama", tmp_path / "model", hidden_size=48, intermediate_size=112, head_dim=12)
    with pytest.raises(UserError, match="grid nf4") as found:
        more = "+quant@stages.quant=nf4"
        compress.run(tiny_run("prune_only", tmp_path / "model", text_file, tmp_path / "out", more))
    assert "int8" in found.value.hint and not list((cache / "store").glob("evaluations/*"))


def test_a_chat_template_that_refuses(model: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ raise_exception('system message needed') }}")
    with pytest.raises(UserError, match=r"chat template .* system message needed"):
        compress.run(tiny_run("nf4", model, text_file, tmp_path / "out"))


@pytest.mark.parametrize(
    ("pipeline", "more"),
    [
        ("nf4", ()),
        ("prune_only", ("evaluate.measure=false", "own_text.tokens=0")),
        ("distill_only", ("evaluate.measure=false", "own_text.tokens=0")),
    ],
    ids=["measured", "calibrated", "trained"],
)
def test_a_token_the_model_has_no_row_for(
    pipeline: str, more: tuple[str, ...], text_file: Path, tmp_path: Path, cache: Path
) -> None:
    save("llama", tmp_path / "model", vocab_size=100)
    with pytest.raises(UserError, match=r"token \d+ .* embedding has 100 rows"):
        compress.run(tiny_run(pipeline, tmp_path / "model", text_file, tmp_path / "out", *more))


def test_empty_text(model: Path, tmp_path: Path, cache: Path) -> None:
    text = tmp_path / "empty.txt"
    text.write_text("")
    with pytest.raises(UserError, match=r"empty\.txt"):
        compress.run(tiny_run("nf4", model, text, tmp_path / "out"))


def test_too_short_text(model: Path, tmp_path: Path, cache: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("A few words.\n\nAnd a few more.\n\nAnd the end.")
    with pytest.raises(UserError, match="tokens"):
        compress.run(tiny_run("nf4", model, text, tmp_path / "out"))


@pytest.mark.parametrize("pipeline", ["prune_heal", "prune_iterative", "prune_search"])
def test_too_short_to_train_on_is_said_before_the_work(pipeline: str, model: Path, tmp_path: Path, cache: Path) -> None:
    """Enough to measure on in all, but no document of a training window's size."""
    text = tmp_path / "rows.jsonl"
    text.write_text("".join(json.dumps({"text": f"Row {i}."}) + "\n" for i in range(400)))
    with pytest.raises(UserError, match=r"(?s)training text is too short.*train\.length"):
        compress.run(tiny_run(pipeline, model, text, tmp_path / "out", "train.length=128"))
    assert not list((cache / "store").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["stages.prune.mlp=0.001"], "leaves nothing"),
        (["stages.prune.query_heads=0.3"], "query heads of each KV group"),
        (["stages.prune.bytes=1000"], "bytes=1000 cannot be reached"),
        (["stages.prune.latency=2"], "latency=2"),
        (["stages.prune.bytes=300000", "stages.prune.latency=0.5"], "two goals at once"),
        (["stages.prune.importance=guess"], "importance"),
    ],
)
def test_cuts_that_cannot_be(
    more: list[str], problem: str, model: Path, text_file: Path, tmp_path: Path, cache: Path
) -> None:
    with pytest.raises(UserError, match=problem):
        compress.run(tiny_run("prune_heal", model, text_file, tmp_path / "out", *more))
    assert not list((cache / "store").rglob("*.safetensors"))


def test_heads_that_the_groups_forbid(model: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    more = ["stages.prune.keep=null", "stages.prune.heads=0.3"]
    with pytest.raises(UserError, match="KV groups"):
        compress.run(tiny_run("prune_only", model, text_file, tmp_path / "out", *more))


def test_hidden_width_that_gpt2_cannot_say(text_file: Path, tmp_path: Path, cache: Path) -> None:
    from tests.models import save

    save("gpt2", tmp_path / "gpt2")
    more = ["stages.prune.keep=null", "stages.prune.hidden=0.5", "stages.prune.multiple=16"]
    with pytest.raises(UserError, match="head"):
        compress.run(tiny_run("prune_only", tmp_path / "gpt2", text_file, tmp_path / "out", *more))


@pytest.mark.parametrize(
    ("student", "teacher", "said"),
    [
        (400, 320, "same tokenizer, but embeddings of 400 and 320 rows"),
        (300, 320, "tokenizer has 320 words, and the student's embedding 300 rows"),
    ],
)
def test_rows_that_are_not_all_padding(
    student: int, teacher: int, said: str, text_file: Path, tmp_path: Path, cache: Path
) -> None:
    from tests.models import save

    for name, rows in (("student", student), ("teacher", teacher)):
        save("llama", tmp_path / name, vocab_size=rows)
    more = ["+model@teacher=hf", f"teacher.path={tmp_path / 'teacher'}"]
    with pytest.raises(UserError, match=said):
        compress.run(tiny_run("distill_only", tmp_path / "student", text_file, tmp_path / "out", *more))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"\u0143"', '"\u0144"', "missing in the teacher's"),
        ('"add_prefix_space":false', '"add_prefix_space":true', "cut"),
    ],
)
def test_teacher_whose_tokenizer_differs_in_a_word_or_a_rule(
    old: str, new: str, said: str, model: Path, tmp_path: Path
) -> None:
    """The same size is not the same vocabulary, and the same vocabulary not the same tokens."""
    from compress.checkpoint import Checkpoint
    from compress.words import check_same_words

    text = json.dumps(json.loads((model / "tokenizer.json").read_text()), ensure_ascii=False, separators=(",", ":"))
    assert old in text
    teacher = tmp_path / "teacher"
    shutil.copytree(model, teacher)
    (teacher / "tokenizer.json").write_text(text.replace(old, new))
    ours, theirs = (Checkpoint(folder, frozenset()) for folder in (model, teacher))
    check_same_words(ours, ours)
    with pytest.raises(UserError, match=said):
        check_same_words(ours, theirs)


def test_cuda_that_is_not_there(model: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(UserError, match="device=cpu"):
        compress.run(tiny_run("nf4", model, text_file, tmp_path / "out", "device=cuda"))
