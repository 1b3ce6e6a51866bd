"""The proof must fail where it should: other weights, NaN, a flipped bit, a missing file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.checkpoint import Checkpoint
from compress.command import run_overrides
from compress.errors import UserError
from compress.export import probe
from compress.export.base import Expectation
from compress.export.check import check_artifact
from compress.export.fresh import FreshProcess, ReloadError
from compress.export.hf import write_artifact
from compress.export.manifest import damaged, write_manifest
from compress.export.settings import HFExport
from compress.export.verify import RoundTrip, compare, verify
from compress.runtime.loading import load_model
from compress.stage import DENSE

IDS = torch.arange(3, 35)[None]


pytestmark = pytest.mark.usefixtures("cold_processes")


@pytest.fixture
def artifact(tiny_llama: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    checkpoint = Checkpoint(tiny_llama, frozenset({DENSE}))
    write_artifact(checkpoint, HFExport(), folder)
    expectation = HFExport().expect(checkpoint, IDS, lambda given, dtype: load_model(given.folder, dtype=dtype))
    probe.keep(folder, IDS, expectation, {"runtime": "transformers"})
    write_manifest(folder)
    return folder


def reloaded(artifact: Path, model: object) -> RoundTrip:
    with torch.no_grad(), FreshProcess("transformers", artifact, 1, 64) as process:
        return verify(process, Expectation(model(IDS).logits[0], 1e-4), IDS)


def test_kl_against_an_independent_computation() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(7, 11), torch.randn(7, 11)
    expected = torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none").sum(
        -1
    )
    found = compare(p, q, 1.0)
    assert found.mean_kl == pytest.approx(float(expected.mean()), rel=1e-5)
    assert found.max_kl == pytest.approx(float(expected.max()), rel=1e-5)
    assert found.top1_agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).float().mean()))


def test_nan_fails() -> None:
    p = torch.randn(3, 5)
    assert not compare(p, torch.full((3, 5), float("nan")), 1e9).verified
    assert not compare(p, p[:2], 1e9).verified


def test_fresh_process_agrees_and_other_weights_do_not(artifact: Path) -> None:
    model = load_model(artifact)
    good = reloaded(artifact, model)
    assert good.verified and good.mean_kl < 1e-6 and good.first_difference is None
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(0.5)
    bad = reloaded(artifact, model)
    assert not bad.verified and bad.loaded and "tolerance" in bad.error


def test_what_cannot_be_loaded_says_why(artifact: Path) -> None:
    (artifact / "config.json").unlink()
    with pytest.raises(ReloadError, match="config"):
        FreshProcess("transformers", artifact, 1, 64)


def test_the_kept_answers_are_those_of_the_pipeline(artifact: Path) -> None:
    """KL over the kept tokens and the rest as one: at most the whole KL, and near it."""
    kept = probe.kept(artifact)
    assert kept is not None
    with torch.no_grad():
        expected = load_model(artifact)(IDS).logits[0]
    assert kept.compare(expected).mean_kl < 1e-9
    other = expected + 0.3 * torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    whole, part = compare(expected, other, 1.0), kept.compare(other)
    assert 0.5 * whole.mean_kl < part.mean_kl <= whole.mean_kl * (1 + 1e-6)
    assert part.first_difference == whole.first_difference
    assert not kept.compare(expected[:-1]).verified


def test_flipped_bit_is_found_and_its_tensor_named(artifact: Path) -> None:
    assert damaged(artifact) == []
    file = artifact / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(bytes(content))
    found = damaged(artifact)
    assert len(found) == 1 and found[0].startswith("tensor ")
    with pytest.raises(UserError, match="not as it was written"):
        run_overrides(["mode=verify", f"artifact={artifact}"])


def test_missing_and_truncated_files_are_found(artifact: Path) -> None:
    (artifact / "tokenizer.json").unlink()
    assert damaged(artifact) == ["tokenizer.json"]
    file = artifact / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors" in damaged(artifact)


def test_verify_mode_says_so_when_all_is_well(artifact: Path) -> None:
    told = run_overrides(["mode=verify", f"artifact={artifact}"])
    assert told["status"] == 0 and "answers as it did" in told["message"]


def test_weights_of_another_model_under_a_manifest_of_their_own_fail(artifact: Path, tmp_path: Path) -> None:
    """What the hashes cannot know: everything is as it was written, but it was not this model."""
    from tests.models import save

    save("llama", tmp_path / "other", seed=1)
    (artifact / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    write_manifest(artifact)
    told = run_overrides(["mode=verify", f"artifact={artifact}"])
    assert told["status"] == 1 and "FAILED" in told["message"]


def test_a_file_that_was_not_there_is_found(artifact: Path) -> None:
    (artifact / "adapter_config.json").write_text("{}")
    assert damaged(artifact) == ["adapter_config.json (was not there)"]


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"files": {}}', b'{"files": {"a": 1}}', b"\xff\xfe", b'{"files"']
)
def test_a_damaged_manifest_is_said_to_be(artifact: Path, content: bytes) -> None:
    (artifact / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        check_artifact(str(artifact))


@pytest.mark.parametrize(("word", "other"), [('"tensors"', '"tensorr"'), ("model.embed_tokens", "model.embed_tokend")])
def test_a_manifest_that_names_other_things_is_damaged(artifact: Path, word: str, other: str) -> None:
    """What it no longer names would be compared with nothing."""
    file = artifact / "manifest.json"
    text = file.read_text()
    assert word in text
    file.write_text(text.replace(word, other, 1))
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        check_artifact(str(artifact))


@pytest.mark.parametrize("name", ["extra.txt", "tokenizer.model", "more/weights.pt", "model-2.safetensors"])
def test_files_that_were_not_there_are_told(artifact: Path, name: str) -> None:
    (artifact / name).parent.mkdir(exist_ok=True)
    (artifact / name).write_bytes(b"x")
    (artifact / "README.md").write_text("a card may change")
    assert damaged(artifact) == [f"{name} (was not there)"]
