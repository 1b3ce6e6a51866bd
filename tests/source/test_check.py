"""Every way in which a folder is no model to start from gets its own message; a good one passes."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.errors import UserError
from compress.source.check import check_complete, check_finite, check_folder, weight_files, weights_fingerprint
from tests.models import FAMILIES, save


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    save("llama", folder)
    return folder


@pytest.fixture
def folder(good, tmp_path):
    shutil.copytree(good, tmp_path / "model")
    return tmp_path / "model"


def edit(file, **changes):
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def shard(folder, parts=3):
    """Spread model.safetensors over several files with an index, by hand."""
    tensors = load_file(folder / "model.safetensors")
    weight_map = {}
    for number in range(parts):
        name = f"model-{number + 1:05d}-of-{parts:05d}.safetensors"
        mine = {key: tensors[key] for key in sorted(tensors)[number::parts]}
        save_file(mine, folder / name)
        weight_map |= dict.fromkeys(mine, name)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def cut(file, size):
    file.write_bytes(file.read_bytes()[:size])


def rewrite_header(file, change):
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = change(content[8 : 8 + size])
    file.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])


def quantized(folder):
    edit(folder / "config.json", quantization_config={"quant_method": "bitsandbytes"})


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def only_adapter(folder):
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")


def misnamed(folder):
    (folder / "model.safetensors").rename(folder / "weights.safetensors")


def shard_missing(folder):
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()


def shard_cut(folder):
    shard(folder)
    cut(folder / "model-00003-of-00003.safetensors", -1)


def shard_swapped(folder):
    weight_map = shard(folder)
    first = min(weight_map)
    weight_map[first] = "model-00002-of-00003.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


W = "model.safetensors"
CASES = {
    "missing": (shutil.rmtree, ["does not exist", "model.path=DIR_OR_ID"]),
    "no config": (lambda f: (f / "config.json").unlink(), ["no config.json", "not a Hugging Face model folder"]),
    "adapter": (only_adapter, ["PEFT adapter", "merge"]),
    "adapter beside": (
        lambda f: (f / "adapter_config.json").write_text("{}"),
        ["has an adapter beside it", "Merge it"],
    ),
    "config broken": (lambda f: cut(f / "config.json", 40), ["config.json", "not valid JSON"]),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), ["config.json", "not a JSON object"]),
    "no type": (lambda f: edit(f / "config.json", model_type=None), ["model_type"]),
    "architecture": (lambda f: edit(f / "config.json", model_type="mamba"), ["mamba", "llama", "gpt_neox"]),
    "quantized": (quantized, ["already quantized (bitsandbytes)", "dense"]),
    "no weights": (lambda f: (f / W).unlink(), ["no weights", W]),
    "misnamed": (misnamed, ["no weights", "weights.safetensors"]),
    "pickle": (pickled, ["pytorch_model.bin", "pickle", "save_pretrained"]),
    "index broken": (lambda f: (shard(f), cut(f / f"{W}.index.json", 30)), ["index.json", "not valid JSON"]),
    "index empty": (lambda f: (shard(f), (f / f"{W}.index.json").write_text("{}")), ["no weight_map"]),
    "shard missing": (shard_missing, ["lacks 1 of the 3", "model-00002-of-00003.safetensors"]),
    "shard cut": (shard_cut, ["model-00003-of-00003.safetensors", "truncated", "bytes"]),
    "shard swapped": (shard_swapped, ["does not hold tensor lm_head.weight"]),
    "cut": (lambda f: cut(f / W, 5000), [W, "truncated"]),
    "cut by a byte": (lambda f: cut(f / W, -1), [W, "truncated", "its header says"]),
    "cut in the header": (lambda f: cut(f / W, 100), [W, "truncated", "the whole file has 100"]),
    "cut to nothing": (lambda f: cut(f / W, 0), [W, "truncated"]),
    "longer": (lambda f: (f / W).write_bytes((f / W).read_bytes() + b"x"), [W, "damaged"]),
    "header no JSON": (lambda f: rewrite_header(f / W, lambda h: b"x" * len(h)), [W, "header"]),
    "header of another kind": (lambda f: rewrite_header(f / W, lambda h: b'{"a": 1}'), [W, "header"]),
    "html": (lambda f: (f / W).write_bytes(b"<!DOCTYPE html><title>Sign in</title>"), [W, "damaged"]),
    "lfs": (lambda f: (f / W).write_text("version https://git-lfs.github.com/spec/v1\n"), [W, "damaged"]),
    "no tensor": (lambda f: save_file({}, f / W), ["no tensor"]),
    "tokenizer": (no_tokenizer, ["no tokenizer", "tokenizer.json"]),
}


@pytest.mark.parametrize("case", CASES)
def test_each_damage_has_one_message(folder, case):
    damage, expected = CASES[case]
    damage(folder)
    with pytest.raises(UserError) as caught:
        check_folder(folder)
    assert all(part in str(caught.value) for part in expected), str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_folders_pass(tmp_path, family):
    save(family, tmp_path)
    check_folder(tmp_path)
    check_finite(tmp_path)
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


def test_other_tokenizer_files_count_too(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match="no tokenizer"):
        check_folder(folder)
    (folder / "merges.txt").write_text("")
    check_folder(folder)


def test_files_beside_the_weights_are_not_weights(folder):
    (folder / "consolidated.safetensors").write_bytes(b"junk")
    (folder / "pytorch_model.bin").write_bytes(b"junk")
    check_folder(folder)
    assert weight_files(folder) == [folder / "model.safetensors"]


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_found_and_its_tensor_named(folder, value, dtype, sharded):
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / W).items()}
    name = "model.layers.2.mlp.up_proj.weight"
    tensors[name][77, 3] = value
    save_file(tensors, folder / W)
    if sharded:
        shard(folder)
    check_folder(folder)
    with pytest.raises(UserError, match=rf"{name} .* holds 1 NaN or infinite values of {tensors[name].numel()}"):
        check_finite(folder)


def test_integer_empty_and_huge_tensors_are_finite(folder):
    largest = torch.full((4,), torch.finfo(torch.float16).max, dtype=torch.float16)
    save_file({"a": torch.ones(3, dtype=torch.int64), "b": torch.ones(0), "c": largest}, folder / W)
    check_finite(folder)


def test_the_fingerprint_is_of_the_weights_alone(folder):
    fingerprint = weights_fingerprint(folder)
    edit(folder / "config.json", rope_theta=5.0)
    shard(folder)
    assert weights_fingerprint(folder) == fingerprint


@pytest.mark.parametrize("change", ["value", "shape", "dtype", "name"])
def test_the_fingerprint_sees_each_change(folder, change):
    fingerprint = weights_fingerprint(folder)
    tensors = load_file(folder / W)
    name = "model.norm.weight"
    if change == "value":
        tensors[name][5] = torch.nextafter(tensors[name][5], torch.tensor(9.0))
    elif change == "shape":
        tensors[name] = tensors[name].view(8, 8)
    elif change == "dtype":
        tensors[name] = tensors[name].view(torch.int32)
    else:
        tensors["model.norm.bias"] = tensors.pop(name)
    save_file(tensors, folder / W)
    assert weights_fingerprint(folder) != fingerprint


def test_nothing_heavy_is_imported_for_a_check(folder):
    code = (
        "import sys, pathlib, compress.source, compress.data\n"
        f"compress.source.check_folder(pathlib.Path({str(folder)!r}))\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'pyarrow', 'huggingface_hub', 'safetensors'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda f: cut(f / "tokenizer.json", 200),
        lambda f: edit(f / "config.json", hidden_size="64"),
        lambda f: edit(f / "config.json", hidden_act="no such thing"),
    ],
)
def test_files_that_transformers_cannot_read_are_the_users_to_mend(folder, spoil):
    spoil(folder)
    with pytest.raises(UserError, match="cannot be read"):
        check_complete(folder)


def test_a_gguf_file_is_no_folder(tmp_path):
    from compress.source import HuggingFaceModel

    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    for ask in (HuggingFaceModel(str(file)).resolve, HuggingFaceModel(str(file)).fetch_small):
        with pytest.raises(UserError, match="is a GGUF file"):
            ask()
