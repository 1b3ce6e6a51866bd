"""GGUF files against llama.cpp itself: it must say what the model says, cut texts alike, and find codes unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.checkpoint import Checkpoint
from compress.errors import UserError
from compress.export.gguf.settings import FILE, GGUFExport, GGUFType
from compress.export.gguf.write import turned
from compress.export.verify import RoundTrip, verify
from compress.stage import DENSE
from tests.export.written import exported, load
from tests.models import save, tiny

gguf = pytest.importorskip("gguf", reason="pip install 'compress[runtimes]'")
pytest.importorskip("llama_cpp", reason="pip install 'compress[runtimes]'")

from compress.export.deliver import TEXTS  # noqa: E402
from compress.export.fresh import FreshProcess  # noqa: E402

IDS = torch.arange(3, 99)[None]
NO_WINDOW = {"use_sliding_window": False}
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama-tied", {}),
    "llama with biases": ("llama-biases", {}),
    "llama, heads of another size": ("llama-head_dim", {}),
    "llama 3 positions": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "llama linear positions": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "qwen2": ("qwen2", NO_WINDOW),
    "qwen2 tied": ("qwen2-implicit_head_dim", NO_WINDOW),
    "qwen2, half of the heads": (
        "qwen2",
        NO_WINDOW | {"num_key_value_heads": 1, "num_attention_heads": 2, "head_dim": 16},
    ),
    "qwen2, narrow": ("qwen2", NO_WINDOW | {"hidden_size": 32, "head_dim": 16}),
    "qwen3": ("qwen3", NO_WINDOW),
    "qwen3, half of the heads": ("qwen3", NO_WINDOW | {"num_key_value_heads": 1, "num_attention_heads": 2}),
    "gpt2": ("gpt2", {}),
    "gpt2 untied": ("gpt2-untied", {}),
    "width-pruned": ("llama", {"num_key_value_heads": 1, "num_attention_heads": 2, "intermediate_size": 96}),
    "narrow": ("llama", {"hidden_size": 32, "head_dim": 16}),
    "depth-pruned": ("llama", {"num_hidden_layers": 2}),
}


def told(checkpoint: Checkpoint, folder: Path, settings: GGUFExport) -> RoundTrip:
    expectation = settings.expect(checkpoint, IDS, load)
    with FreshProcess(settings.runtime(checkpoint), folder / "artifact", 1, 128) as process:
        expected = [checkpoint.tokenizer()(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
        assert process.tokens(list(TEXTS)) == expected
        speed = process.speed(IDS[0, :32], 4)
        assert min(speed.values()) > 0
        return verify(process, expectation, IDS)


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_says_what_the_model_says(name: str, kind: str, tmp_path: Path) -> None:
    settings = GGUFExport(type=GGUFType(kind))
    found = told(exported(*MODELS[name], tmp_path, settings), tmp_path, settings)
    assert found.verified, found.error
    if kind == "f16":
        assert found.emulation is None and found.mean_kl < 1e-4
    else:
        # q8_0 rounds away less than q4_0 does, and the emulation explains most of either
        assert found.emulation is not None
        assert found.emulation["mean_kl"] < 2e-3 and found.emulation["mean_kl"] < found.mean_kl


def test_mixed_by_tensor(tmp_path: Path) -> None:
    settings = GGUFExport(
        type=GGUFType.q4_0, embedding=GGUFType.q5_1, tensors={"layers.0.": GGUFType.q8_0, "down_proj": GGUFType.f16}
    )
    checkpoint = exported(*MODELS["llama"], tmp_path, settings)
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "artifact" / FILE).tensors}
    assert kinds["token_embd.weight"] == kinds["output.weight"] == "Q5_1"
    assert kinds["blk.0.attn_q.weight"] == "Q8_0" and kinds["blk.1.attn_q.weight"] == "Q4_0"
    assert kinds["blk.0.ffn_down.weight"] == kinds["blk.3.ffn_down.weight"] == "F16"
    assert told(checkpoint, tmp_path, settings).verified


def test_same_bits_as_llama_cpps_own_quantizer(tmp_path: Path) -> None:
    """Our q4_0 and q8_0 files hold the tensors that llama.cpp makes of our f16 file."""
    import llama_cpp

    save("llama", tmp_path / "model")
    checkpoint = Checkpoint(tmp_path / "model", frozenset({DENSE}))
    # what f16 holds exactly, so that both quantize the same numbers
    from safetensors.torch import load_file, save_file

    file = tmp_path / "model" / "model.safetensors"
    save_file({name: value.half().float() for name, value in load_file(file).items()}, file, {"format": "pt"})
    GGUFExport().write(checkpoint, tmp_path / "f16")
    for kind, number in (("q4_0", 2), ("q8_0", 7)):
        settings = GGUFExport(type=GGUFType(kind), embedding=GGUFType(kind))
        settings.write(checkpoint, tmp_path / kind)
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.pure, params.nthread = number, True, 1
        theirs = tmp_path / f"{kind}.gguf"
        source = str(tmp_path / "f16" / FILE).encode()
        assert llama_cpp.llama_model_quantize(source, str(theirs).encode(), params) == 0
        expected = {t.name: t for t in gguf.GGUFReader(theirs).tensors}
        for tensor in gguf.GGUFReader(tmp_path / kind / FILE).tensors:
            assert tensor.tensor_type == expected[tensor.name].tensor_type, tensor.name
            assert tensor.data.tobytes() == expected[tensor.name].data.tobytes(), tensor.name


def test_rows_that_are_no_whole_blocks_stay_f16(tmp_path: Path) -> None:
    save("llama", tmp_path / "model", intermediate_size=72)
    settings = GGUFExport(type=GGUFType.q8_0)
    checkpoint = Checkpoint(tmp_path / "model", frozenset({DENSE}))
    settings.write(checkpoint, tmp_path / "artifact")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "artifact" / FILE).tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16" and kinds["blk.0.ffn_up.weight"] == "Q8_0"
    assert told(checkpoint, tmp_path, settings).verified


def test_what_f16_cannot_hold_is_f32(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save("llama", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(weights, file, {"format": "pt"})
    GGUFExport().write(Checkpoint(tmp_path / "model", frozenset({DENSE})), tmp_path / "artifact")
    read = {t.name: t for t in gguf.GGUFReader(tmp_path / "artifact" / FILE).tensors}
    assert read["blk.0.ffn_up.weight"].tensor_type.name == "F32" and read["blk.0.ffn_up.weight"].data[0, 0] == 1e5


def test_wrong_order_of_rows_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is worth something: without the permutation it fails."""
    from compress.export.gguf import write

    monkeypatch.setattr(write, "turned", lambda rows, heads: rows)
    settings = GGUFExport()
    assert not told(exported(*MODELS["llama"], tmp_path, settings), tmp_path, settings).verified


def test_turned_rows_rotate_the_same() -> None:
    """Neighbours turned after reordering = halves turned before it."""
    heads, size, angle = 2, 8, torch.rand(4)
    x = torch.randn(heads * size)
    halves = x.view(heads, 2, size // 2)
    half = torch.stack(
        [
            halves[:, 0] * angle.cos() - halves[:, 1] * angle.sin(),
            halves[:, 1] * angle.cos() + halves[:, 0] * angle.sin(),
        ],
        1,
    ).flatten()
    pairs = turned(x, heads).view(heads, size // 2, 2)
    turned_pairs = torch.stack(
        [
            pairs[..., 0] * angle.cos() - pairs[..., 1] * angle.sin(),
            pairs[..., 1] * angle.cos() + pairs[..., 0] * angle.sin(),
        ],
        -1,
    ).flatten()
    torch.testing.assert_close(turned(half, heads), turned_pairs)


@pytest.mark.parametrize(
    ("family", "overrides", "word"),
    [
        ("qwen2", {}, "window"),
        ("mistral", {}, "window"),
        ("gpt_neox", {}, "gpt_neox"),
        ("llama", {"hidden_act": "gelu"}, "gelu"),
        ("gpt2", {"activation_function": "relu"}, "relu"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
    ],
)
def test_what_llama_cpp_would_run_as_another_model_is_refused(
    family: str, overrides: dict[str, object], word: str
) -> None:
    from compress.export.gguf.header import check_family

    config, _ = tiny(family, **overrides)
    with pytest.raises(UserError, match=word):
        check_family(config)


def test_an_unknown_tokenizer_is_refused(tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    from compress.export.gguf.header import words_cut
    from tests.models import tiny_tokenizer

    tiny_tokenizer().save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert words_cut(tokenizer) == "gpt-2"
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UserError, match="Whitespace"):
        words_cut(tokenizer)


def test_a_run_delivers_it_and_verify_names_what_is_damaged(
    tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path
) -> None:
    import compress
    from tests.pipelines.helpers import tiny_run

    more = ["+export@export.gguf=gguf", "export.gguf.type=q8_0", "stages.prune.keep=0.8", "evaluate.prompts=[]"]
    report = compress.run(tiny_run("prune_only", tiny_llama, text_file, tmp_path / "out", *more))
    artifacts = {artifact["name"]: artifact for artifact in report["artifacts"]}
    assert all(artifact["verified"] for artifact in artifacts.values()), artifacts
    found, folder = artifacts["gguf"], Path(artifacts["gguf"]["path"])
    # the same model in two runtimes
    assert found["metrics"]["ppl"] == pytest.approx(artifacts["hf"]["metrics"]["ppl"], rel=0.02)
    assert found["metrics"]["bytes"] == found["bytes"] == (folder / FILE).stat().st_size
    assert found["speed"]["decode_tokens_per_second"] > 0 and found["emulation"]["mean_kl"] < found["mean_kl"]
    assert "llama_cpp" in (folder / "README.md").read_text()
    again = compress.run(["mode=verify", f"artifact={folder}"])
    assert again["status"] == 0 and "answers as it did" in again["message"]
    content = bytearray((folder / FILE).read_bytes())
    content[-5] ^= 1
    (folder / FILE).write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"tensor .* of model.gguf"):
        compress.run(["mode=verify", f"artifact={folder}"])
    (folder / FILE).write_bytes(bytes(content[:-200]))
    with pytest.raises(UserError, match=r"written: model.gguf"):
        compress.run(["mode=verify", f"artifact={folder}"])


def test_a_missing_runtime_is_said_before_any_work(
    tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    import compress
    from tests.pipelines.helpers import tiny_run

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "llama_cpp" else find(name, *a))
    with pytest.raises(UserError, match="llama_cpp") as raised:
        compress.run(tiny_run("prune_only", tiny_llama, text_file, tmp_path / "out", "+export@export.gguf=gguf"))
    assert "pip install" in raised.value.hint
    assert not (tmp_path / "out" / "artifacts").exists()
