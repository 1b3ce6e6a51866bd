"""ExecuTorch programs against their runtime in a fresh process: whole texts, and texts written with the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.arch import adapter_for
from compress.arch.linears import linear_paths
from compress.checkpoint import Checkpoint
from compress.command import run_overrides
from compress.errors import UserError
from compress.export import probe
from compress.export.emulate import answer
from compress.export.executorch import write
from compress.export.executorch.settings import FILE, ExecutorchExport, ExecutorchType
from compress.export.manifest import write_manifest
from compress.export.tensors import dense_model
from compress.grids import grid_named
from compress.quant.encode import Placement, encode_checkpoint
from compress.runtime.loading import load_model
from compress.stage import DENSE
from tests.models import FAMILIES, save, tiny
from tests.runtime.checkpoints import context_for, quantized

pytest.importorskip("executorch", reason="pip install 'compress[executorch]'")
pytest.importorskip("torchao", reason="pip install 'compress[executorch]'")

from compress.export.fresh import FreshProcess, ReloadError
from compress.export.reload import ExecuTorch
from compress.export.verify import compare, verify

IDS = torch.arange(3, 51)[None]
MODELS: dict[str, tuple[str, str, dict[str, object]]] = {
    "llama tied": ("fp32", "llama-tied", {"num_hidden_layers": 1}),
    "width-pruned": (
        "8da4w",
        "llama",
        {"num_key_value_heads": 1, "num_attention_heads": 2, "intermediate_size": 80, "num_hidden_layers": 2},
    ),
    "depth-pruned": ("8da4w", "llama-tied", {"num_hidden_layers": 1}),
    # one layer with a window of five tokens
    "qwen2": ("fp32", "qwen2", {"num_hidden_layers": 2, "max_window_layers": 1}),
    "gpt2": ("8da4w", "gpt2", {"n_layer": 1}),
}


def load(checkpoint: Checkpoint, dtype: torch.dtype | None) -> object:
    return load_model(checkpoint.folder, dtype=dtype)


@pytest.mark.parametrize(
    "name",
    [
        "llama tied",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("width-pruned", "depth-pruned", "qwen2", "gpt2")),
    ],
)
def test_the_runtime_says_what_the_model_says(name: str, tmp_path: Path) -> None:
    kind, family, overrides = MODELS[name]
    save(family, tmp_path / "model", **overrides)
    checkpoint = Checkpoint(tmp_path / "model", frozenset({DENSE}))
    settings, folder = ExecutorchExport(type=ExecutorchType(kind), context=64), tmp_path / "artifact"
    settings.check(checkpoint)
    settings.write(checkpoint, folder)
    with FreshProcess("executorch", folder, 1, 64) as process:
        assert min(process.speed(IDS[0, :32], 4).values()) > 0
        found = verify(process, settings.expect(checkpoint, IDS, load), IDS)
    assert found.verified, found
    if kind == "fp32":
        assert found.emulation is None and found.mean_kl < 1e-8
    else:
        assert found.emulation is not None
        assert found.emulation["mean_kl"] < 1e-3 and found.emulation["mean_kl"] < found.mean_kl / 3
    # the cache: half of the text, then one token after the other
    runtime = ExecuTorch(str(folder), 1, 64)
    best = runtime.logits(IDS[0].numpy()).argmax(-1)
    assert runtime.prefill(IDS[0, :24].numpy()) == best[23]
    assert [runtime.step(int(token)) for token in IDS[0, 24:]] == list(best[24:])
    with pytest.raises(ReloadError, match="64 tokens"):
        FreshProcess("executorch", folder, 1, 65)
    if name == "depth-pruned":
        verify_names_what_is_damaged(folder, settings, checkpoint)


def verify_names_what_is_damaged(folder: Path, settings: ExecutorchExport, checkpoint: Checkpoint) -> None:
    expectation = settings.expect(checkpoint, IDS, load)
    probe.keep(folder, IDS, expectation, {"format": "executorch", "runtime": "executorch"})
    write_manifest(folder)
    ask = ["mode=verify", f"artifact={folder}", "threads=1"]
    told = run_overrides(ask)
    assert told["status"] == 0 and "executorch answers as it did" in told["message"]
    content = bytearray((folder / FILE).read_bytes())
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (content[:-100], flipped):
        (folder / FILE).write_bytes(bytes(damaged))
        with pytest.raises(UserError, match=f"written: {FILE}"):
            run_overrides(ask)


@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_codes_are_written_unchanged_or_refused(family: str, tmp_path: Path) -> None:
    from compress.export.executorch.write import _own_codes, exported_model

    linears = linear_paths(tiny(family)[0])
    for name in ("int4_g32", "int8"):
        grid = grid_named(name)
        checkpoint, _, dense = quantized(family, tmp_path / name, dict.fromkeys(linears, name))
        model, codes = exported_model(checkpoint, ExecutorchExport(type=ExecutorchType("8da4w")))
        for path in linears:
            weight = dense.get_submodule(path).weight.detach()
            own = grid.decode(grid.encode(weight.t().contiguous() if family == "gpt2" else weight))
            found = path if name == "int4_g32" else f"{path}.layer"  # the inputs of INT8 codes are rounded in two parts
            torch.testing.assert_close(model.get_submodule(found).weight, own)
            assert codes[found].bits == (4 if name == "int4_g32" else 8)
    for name in ("nf4", "q4_0", "int4_g32_asym"):
        checkpoint, _, _ = quantized(family, tmp_path / name, dict.fromkeys(linears, name))
        with pytest.raises(UserError, match=f"grid {name}"):
            _own_codes(checkpoint)


def on_int8(family: str, folder: Path) -> Checkpoint:
    """One layer, all of it on INT8 codes, embedding and head too."""
    one_layer = {"n_layer" if family == "gpt2" else "num_hidden_layers": 1, "tie_word_embeddings": True}
    config, _ = tiny(family, **one_layer)
    places = [*linear_paths(config), adapter_for(config).modules.embedding]
    checkpoint, _, _ = quantized(family, folder, dict.fromkeys(places, "int8"), **one_layer)
    return checkpoint


@pytest.mark.slow
def test_the_runtime_reads_int8_codes_in_two_parts(tmp_path: Path) -> None:
    checkpoint, folder = on_int8("llama-biases", tmp_path / "q"), tmp_path / "artifact"
    settings = ExecutorchExport(type=ExecutorchType("8da4w"), context=64)
    settings.write(checkpoint, folder)
    with FreshProcess("executorch", folder, 1, 64) as process:
        found = verify(process, settings.expect(checkpoint, IDS, load), IDS)
    assert found.verified and found.emulation is not None and found.emulation["mean_kl"] < 1e-6, found
    runtime, exact = ExecuTorch(str(folder), 1, 64), answer(dense_model(checkpoint, torch.float32), IDS)
    assert runtime.prefill(IDS[0, :24].numpy()) == exact[23].argmax()
    assert [runtime.step(int(token)) for token in IDS[0, 24:]] == exact[24:].argmax(-1).tolist()


@pytest.mark.parametrize("family", ["llama-biases", "gpt2"])
def test_int8_codes_read_inputs_in_two_parts(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is rounded but the inputs: in two parts they lose a 254th, so a ten thousandth in KL."""
    checkpoint = on_int8(family, tmp_path / "q")
    settings = ExecutorchExport(type=ExecutorchType("8da4w"), context=64)
    exact = answer(dense_model(checkpoint, torch.float32), IDS)
    _, emulated, apart = write.expected(checkpoint, settings, IDS, load)
    monkeypatch.setattr(write, "_in_two_parts", lambda _, path: path)
    _, in_one, _ = write.expected(checkpoint, settings, IDS, load)
    assert emulated is not None and in_one is not None
    assert compare(exact, emulated, 1.0).mean_kl < 1e-3 * compare(exact, in_one, 1.0).mean_kl
    assert apart < 1e-6


@pytest.mark.parametrize("given", ["dense", "int4_g32", "int8"])
def test_rows_of_zeros_have_a_scale(given: str, tmp_path: Path) -> None:
    """As the embedding of a padding token has; XNNPACK loads no program with a scale of zero."""
    places = linear_paths(tiny("llama-tied")[0]) if given != "dense" else ()
    _, model = save("llama-tied", tmp_path / "model")
    with torch.no_grad():
        model.get_input_embeddings().weight[2] = 0
        model.model.layers[1].mlp.up_proj.weight[5, :32] = 0
        model.model.layers[1].mlp.up_proj.weight[7] = 0
    model.save_pretrained(tmp_path / "model")
    checkpoint = Checkpoint(tmp_path / "model", frozenset({DENSE}))
    if given != "dense":
        placement = Placement({path: grid_named(given) for path in places}, None)
        checkpoint, _ = encode_checkpoint(checkpoint, placement, frozenset(), context_for(tmp_path / "q", checkpoint))
    plain = ExecutorchExport(type=ExecutorchType("8da4w"), smooth=False, rotate=False)
    found, codes = write.exported_model(checkpoint, plain)
    assert all(float(code.scale.min()) > 1e-30 for code in codes.values())
    up = found.get_submodule("model.layers.1.mlp.up_proj" + (".layer" if given == "int8" else "")).weight
    assert not up[7].any() and not up[5, :32].any() and bool(up[6].any())
    assert not found.lm_head.weight[2].any() and bool(found.lm_head.weight[3].any())


def test_rows_that_are_no_whole_groups_are_int8(tmp_path: Path) -> None:
    from compress.export.executorch.write import exported_model

    save("llama", tmp_path / "model", num_hidden_layers=1, intermediate_size=80)
    checkpoint = Checkpoint(tmp_path / "model", frozenset({DENSE}))
    _, codes = exported_model(checkpoint, ExecutorchExport(type=ExecutorchType("8da4w"), group=64))
    assert codes["model.layers.0.mlp.down_proj.layer"].bits == 8  # 80 inputs
    assert codes["model.layers.0.mlp.up_proj.layer"].bits == 4
    assert codes["model.layers.0.mlp.up_proj.layer"].scale.shape == (80, 1)
    assert codes["lm_head.layer"].bits == 8


@pytest.mark.parametrize("family", [*FAMILIES, "llama-tied", "llama-biases"])
def test_smoothing_changes_nothing_but_what_is_rounded(family: str, tmp_path: Path) -> None:
    from compress.export.executorch.smooth import smooth
    from compress.export.executorch.write import _as_linear, _untie
    from compress.grids import Int8, Integer

    save(family, tmp_path)
    checkpoint = Checkpoint(tmp_path, frozenset({DENSE}))
    modules, linears = adapter_for(checkpoint.config).modules, linear_paths(checkpoint.config)
    model, before = dense_model(checkpoint, torch.float32), dense_model(checkpoint, torch.float32)
    for path in linears if modules.conv1d else ():
        _as_linear(model, path)
    _untie(model, modules.head)
    smooth(model, checkpoint.tokenizer(), {**dict.fromkeys(linears, Integer(4, 32)), modules.head: Int8()})
    torch.testing.assert_close(model(IDS).logits, before(IDS).logits, rtol=1e-4, atol=1e-4)
    norm = modules.final_norm
    assert not torch.equal(model.get_submodule(norm).weight, before.get_submodule(norm).weight)
    embedding = modules.embedding
    assert torch.equal(model.get_submodule(embedding).weight, before.get_submodule(embedding).weight)


def test_loud_channels_cost_less_where_they_are_smoothed_and_rotated(tmp_path: Path) -> None:
    from compress.export.executorch.write import expected

    # no row is a whole group of 128: all is INT8, and what is lost is lost by the inputs
    narrow: dict[str, int] = {"intermediate_size": 96}
    _, model = tiny("llama", **narrow)
    with torch.no_grad():
        for layer in model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight[3] *= 60
        model.model.norm.weight[3] *= 60
        # what is loud is read softly, so that the model says what it would
        for name, weight in model.named_parameters():
            if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head"):
                weight[:, 3] /= 60
    save("llama", tmp_path / "model", **narrow)
    model.save_pretrained(tmp_path / "model")
    checkpoint = Checkpoint(tmp_path / "model", frozenset({DENSE}))
    ways = {"plain": (False, False), "smoothed": (True, False), "rotated": (False, True), "both": (True, True)}
    kind = ExecutorchType("8da4w")
    found = {
        way: expected(checkpoint, ExecutorchExport(type=kind, smooth=smooth, rotate=rotate, group=128), IDS, load)
        for way, (smooth, rotate) in ways.items()
    }
    lost = {way: compare(pipeline, emulated, 1.0).mean_kl for way, (pipeline, emulated, _) in found.items()}
    apart = {way: noise for way, (*_, noise) in found.items()}
    for way in ("smoothed", "rotated"):
        assert lost[way] < lost["plain"] / 2, lost
        assert apart[way] < apart["plain"], apart
    assert lost["both"] < lost["rotated"] / 2, lost


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="48"):
        ExecutorchExport(group=48)
    with pytest.raises(UserError, match="context"):
        ExecutorchExport(context=1)


def test_what_exact_computations_differ_by_is_said_and_excuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("llama", tmp_path / "model", num_hidden_layers=2)
    checkpoint = Checkpoint(tmp_path / "model", frozenset({DENSE}))
    kind = ExecutorchType("8da4w")
    _, emulated, apart = write.expected(checkpoint, ExecutorchExport(type=kind), IDS, load)
    assert emulated is not None and 0 < apart < 5e-3
    plain = ExecutorchExport(type=kind).expect(checkpoint, IDS, load)
    assert plain.tolerance == 1e-2 and "apart" not in plain.scheme
    monkeypatch.setattr(write, "last_bits_moved", lambda x: torch.where(x.abs() < 1, 0.0, x))
    _, _, apart = write.expected(checkpoint, ExecutorchExport(type=kind), IDS, load)
    told = ExecutorchExport(type=kind).expect(checkpoint, IDS, load)
    assert apart > 1e-2 and f"{apart:.1e} apart" in told.scheme
    assert told.tolerance == 1e-2
    exact = ExecutorchExport().expect(checkpoint, IDS, load)
    assert exact.tolerance == 1e-4 and exact.emulated is None
