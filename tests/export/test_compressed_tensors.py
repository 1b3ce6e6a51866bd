"""compressed-tensors folders against plain transformers, and against the library's own arithmetic."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from compress.checkpoint import Checkpoint
from compress.errors import UserError
from compress.export.base import SAME_BF16, SAME_FP32, SAME_SCHEME
from compress.export.compressed_tensors.settings import CompressedTensorsExport, Scheme
from compress.export.verify import RoundTrip, compare
from compress.runtime.loading import load_model
from compress.stage import DENSE
from tests.models import save

pytest.importorskip("compressed_tensors", reason="pip install 'compress[runtimes]'")

IDS = torch.arange(3, 99)[None]
PRUNED = {"num_key_value_heads": 1, "num_attention_heads": 2, "intermediate_size": 96}


def load(checkpoint: Checkpoint, dtype: torch.dtype | None) -> object:
    return load_model(checkpoint.folder, dtype=dtype)


def told(checkpoint: Checkpoint, settings: CompressedTensorsExport, folder: Path) -> RoundTrip:
    settings.check(checkpoint)
    settings.write(checkpoint, folder)
    expectation = settings.expect(checkpoint, IDS, load)
    model = load_model(folder, plain=True)
    with torch.no_grad():
        found = model(IDS).logits[0].float()
    judge = expectation.pipeline if expectation.emulated is None else expectation.emulated
    emulation = compare(judge, found, expectation.tolerance)
    return replace(compare(expectation.pipeline, found, 1.0), verified=emulation.verified, emulation=asdict(emulation))


def checkpoint_of(folder: Path, name: str = "llama", dtype: torch.dtype = torch.float32, **over: object) -> Checkpoint:
    _, model = save(name, folder, **over)
    model.to(dtype).save_pretrained(folder)
    return Checkpoint(folder, frozenset({DENSE}))


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16", "w4a16", "w4a16_asym"])
@pytest.mark.parametrize(
    ("name", "over"),
    [("llama-tied", {}), ("llama", PRUNED), ("llama", {"num_hidden_layers": 2}), ("qwen2", {}), ("qwen3-biases", {})],
    ids=["untouched", "width-pruned", "depth-pruned", "qwen2", "qwen3"],
)
def test_transformers_says_what_the_emulation_says(
    name: str, over: dict[str, object], scheme: str, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(tmp_path / "model", name, **over)
    found = told(checkpoint, CompressedTensorsExport(scheme=Scheme(scheme), group=32), tmp_path / "artifact")
    assert found.verified and found.emulation is not None, found.error
    # fp32 on both sides, the same arithmetic: the emulation is exact
    assert found.emulation["mean_kl"] < 1e-8 and found.emulation["top1_agreement"] == 1.0
    assert found.mean_kl > found.emulation["mean_kl"]


def test_bf16(tmp_path: Path) -> None:
    for scheme in ("w8a8", "w4a16"):
        checkpoint = checkpoint_of(tmp_path / scheme, dtype=torch.bfloat16)
        found = told(checkpoint, CompressedTensorsExport(scheme=Scheme(scheme), group=32), tmp_path / f"{scheme}_out")
        assert found.verified and found.emulation is not None, found.error
        assert found.emulation["mean_kl"] < 1e-3


@pytest.mark.parametrize(
    ("scheme", "dtype", "tolerance", "said"),
    [
        ("w8a8", torch.float32, SAME_SCHEME, "per token"),
        ("w8a16", torch.float32, SAME_FP32, "activations as they are"),
        ("w4a16", torch.float32, SAME_FP32, "activations as they are"),
        ("w4a16_asym", torch.bfloat16, SAME_BF16, "activations as they are"),
        ("w8a8", torch.bfloat16, SAME_SCHEME, "per token"),
    ],
)
def test_only_rounded_activations_are_forgiven(
    scheme: str, dtype: torch.dtype, tolerance: float, said: str, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(tmp_path, dtype=dtype)
    expectation = CompressedTensorsExport(scheme=Scheme(scheme), group=32).expect(checkpoint, IDS, load)
    assert expectation.emulated is not None
    assert expectation.tolerance == tolerance and said in expectation.scheme


def test_one_step_for_all_tokens_is_said(tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    import compress
    from tests.pipelines.helpers import tiny_run

    more = ["stages.quant.activations=int8_static", "evaluate.prompts=[]", "evaluate.speed=false"]
    report = compress.run(tiny_run("int8", tiny_llama, text_file, tmp_path / "out", *more))
    artifact = report["artifacts"][1]
    assert artifact["verified"], artifact["error"]
    assert "one step for each layer" in artifact["emulation"]["scheme"]
    assert "per token" not in artifact["emulation"]["scheme"]


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16", "w4a16", "w4a16_asym"])
def test_tensors_are_those_the_library_makes_of_our_scales(scheme: str, tmp_path: Path) -> None:
    """Packing by `compressed_tensors` itself, from the decoded weights, gives the bytes we wrote."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from safetensors.torch import load_file

    from compress.export.compressed_tensors.write import chosen
    from compress.grids import Encoded

    checkpoint = checkpoint_of(tmp_path / "model")
    CompressedTensorsExport(scheme=Scheme(scheme), group=32).write(checkpoint, tmp_path / "artifact")
    stored = load_file(tmp_path / "artifact" / "model.safetensors")
    for name, value, kind in chosen(checkpoint, Scheme(scheme), 32):
        if kind is None or not isinstance(value, Encoded):
            continue
        levels, scales = kind.grid.unpack(value)
        bits = 8 if scheme.startswith("w8") else 4
        if scheme == "w8a8":
            assert torch.equal(stored[name], levels.to(torch.int8))
        else:
            assert torch.equal(stored[f"{name}_packed"], pack_to_int32(levels.to(torch.int8), bits))
        assert torch.equal(stored[f"{name}_scale"].float(), scales.scale)
        if scheme == "w4a16_asym":
            packed = pack_to_int32(scales.stored["zero"], 4, packed_dim=0)
            assert torch.equal(stored[f"{name}_zero_point"], packed)


def test_other_activations_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is worth something: with static activations of a hundredth the size it fails."""
    from compress.export.compressed_tensors import emulate

    monkeypatch.setattr(emulate, "tokens_to_int8", lambda x: x.clamp(-0.1, 0.1))
    checkpoint = checkpoint_of(tmp_path / "model")
    assert not told(checkpoint, CompressedTensorsExport(scheme=Scheme.w8a8), tmp_path / "artifact").verified


def test_int8_codes_of_a_checkpoint_are_written_unchanged(
    tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path
) -> None:
    from safetensors.torch import load_file

    import compress
    from tests.pipelines.helpers import tiny_run

    more = ["evaluate.prompts=[]"]
    report = compress.run(tiny_run("int8", tiny_llama, text_file, tmp_path / "out", *more))
    hf, ct = (artifact["path"] for artifact in report["artifacts"])
    assert all(artifact["verified"] for artifact in report["artifacts"]), report["artifacts"]
    ours, theirs = (load_file(Path(folder) / "model.safetensors") for folder in (hf, ct))
    codes = [name for name, tensor in ours.items() if tensor.dtype == torch.int8]
    assert len(codes) == 28 and all(torch.equal(ours[name], theirs[name]) for name in codes)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    dense = checkpoint_of(tmp_path / "model")
    with pytest.raises(UserError, match="INT8 or INT4"):
        CompressedTensorsExport().write(dense, tmp_path / "artifact")
    with pytest.raises(UserError, match="48"):
        CompressedTensorsExport(group=48)
    for_most = CompressedTensorsExport(scheme=Scheme.w4a16, group=128)
    with pytest.raises(UserError, match="24 of 28 projections would stay dense"):
        for_most.check(checkpoint_of(tmp_path / "narrow", "llama", hidden_size=96))
    with pytest.raises(UserError, match="Conv1D"):
        CompressedTensorsExport().check(checkpoint_of(tmp_path / "gpt2", "gpt2"))
