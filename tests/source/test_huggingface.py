"""Local folders and hub ids: what is fetched, and one message for whatever is neither."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from compress.errors import UserError
from compress.source import HuggingFaceModel
from tests.models import save


@pytest.fixture
def folder(tmp_path):
    save("llama", tmp_path / "my-llama")
    return tmp_path / "my-llama"


def test_a_local_folder_resolves_to_itself(folder, monkeypatch):
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\nlicense: none of this\n")
    resolved = HuggingFaceModel(path=str(folder)).resolve()
    assert resolved.folder == folder
    assert resolved.name == "my-llama"
    assert resolved.licence == "apache-2.0"
    assert resolved.source_bytes == (folder / "model.safetensors").stat().st_size
    monkeypatch.chdir(folder.parent)
    assert HuggingFaceModel(path="my-llama").resolve() == resolved
    (folder / "README.md").unlink()
    assert HuggingFaceModel(path=str(folder)).resolve().licence == ""


def test_a_damaged_folder_does_not_resolve(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model.norm.weight"):
        HuggingFaceModel(path=str(folder)).resolve()
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        HuggingFaceModel(path=str(folder)).resolve()


@pytest.mark.parametrize(
    "path", ["/no/such/folder", "./nothing", "~/nothing/here", "a/b/c", "../no-such-folder", "has space"]
)
def test_what_cannot_be_a_hub_id_is_a_missing_folder(path):
    with pytest.raises(UserError, match=r"folder .* does not exist") as caught:
        HuggingFaceModel(path=path).resolve()
    assert "model.path=DIR_OR_ID" in caught.value.hint


@pytest.mark.parametrize("path", ["models/foo", "foo", "a--b..c"])
def test_what_could_be_either_gets_one_message_for_both(path, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"neither a folder here nor a model that could be fetched") as caught:
        HuggingFaceModel(path=path).resolve()
    assert str(tmp_path / path) in caught.value.hint
    assert "hub" in caught.value.hint


def test_missing_path_and_a_revision_of_a_folder(folder):
    with pytest.raises(UserError, match=r"model.path=DIR_OR_ID"):
        HuggingFaceModel().resolve()
    with pytest.raises(UserError, match=r"model.revision"):
        HuggingFaceModel(path=str(folder), revision="main").resolve()


def test_only_data_is_asked_for_from_the_hub(folder, monkeypatch):
    """A stand-in hub, filtered by huggingface_hub's own rules."""
    from huggingface_hub.utils import filter_repo_objects

    files = [
        "config.json", "generation_config.json", "model.safetensors", "model-00001-of-00002.safetensors",
        "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json",
        "merges.txt", "special_tokens_map.json", "chat_template.jinja", "README.md", "LICENSE",
        "pytorch_model.bin", "modeling_x.py", "tokenizer.py", "tokenization_x.py", "consolidated.safetensors",
        "onnx/model.safetensors", "model/model.safetensors", "chat_template.py",
        "onnx/config.json", "original/params.json", "training_args.bin", "x.pth", "x.gguf",
    ]  # fmt: skip
    asked = {}

    def snapshot_download(repo_id, *, revision, allow_patterns):
        kept = filter_repo_objects(files, allow_patterns=allow_patterns)
        asked.update(id=repo_id, revision=revision, files=sorted(kept))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    resolved = HuggingFaceModel(path="someone/model", revision="v2").resolve()
    assert asked == {"id": "someone/model", "revision": "v2", "files": sorted(files[:14])}
    assert (resolved.name, resolved.folder) == ("someone/model", Path(folder))
