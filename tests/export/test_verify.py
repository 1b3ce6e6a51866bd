"""The proof must fail where it should: other weights, NaN, a flipped bit, a missing file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.checkpoint import Checkpoint
from compress.command import run_overrides
from compress.errors import UserError
from compress.export.hf import damaged, write_artifact, write_manifest
from compress.export.settings import HFExport
from compress.export.verify import compare, verify
from compress.runtime.loading import load_model
from compress.stage import DENSE


@pytest.fixture
def artifact(tiny_llama: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    write_artifact(Checkpoint(tiny_llama, frozenset({DENSE})), HFExport(), folder)
    write_manifest(folder)
    return folder


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
    model, ids = load_model(artifact), torch.arange(3, 35)[None]
    good = verify(artifact, model, ids, 1e-4, threads=1)
    assert good.verified and good.mean_kl < 1e-6 and good.first_difference is None
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(0.5)
    bad = verify(artifact, model, ids, 1e-4, threads=1)
    assert not bad.verified and bad.loaded and "tolerance" in bad.error


def test_what_cannot_be_loaded_fails_loudly(artifact: Path) -> None:
    model = load_model(artifact)
    (artifact / "config.json").unlink()
    found = verify(artifact, model, torch.arange(3, 35)[None], 1e-4, threads=1)
    assert not found.verified and not found.loaded and "cannot" in found.error


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
    assert run_overrides(["mode=verify", f"artifact={artifact}"])["status"] == 0
