"""ONNX graphs against onnxruntime in a fresh process: whole texts, texts written with the cache, padded batches."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.arch import adapter_for
from compress.arch.linears import linear_paths
from compress.checkpoint import Checkpoint
from compress.command import run_overrides
from compress.errors import UserError
from compress.export import probe
from compress.export.manifest import write_manifest
from compress.export.onnx.settings import DATA, FILE, InputType, OnnxExport, OnnxType
from compress.stage import DENSE
from tests.export.written import exported, load
from tests.models import save
from tests.runtime.checkpoints import quantized

onnx = pytest.importorskip("onnx", reason="pip install 'compress[runtimes]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'compress[runtimes]'")
pytest.importorskip("onnxscript", reason="pip install 'compress[runtimes]'")

from compress.export.emulate import answer  # noqa: E402
from compress.export.fresh import FreshProcess  # noqa: E402
from compress.export.onnx import write  # noqa: E402
from compress.export.reload import OnnxRuntime  # noqa: E402
from compress.export.tensors import dense_model  # noqa: E402
from compress.export.verify import RoundTrip, compare, verify  # noqa: E402

IDS = torch.arange(3, 51)[None]
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "llama tied": ("llama-tied", {"num_hidden_layers": 2}),
    "width-pruned": (
        "llama",
        {"num_key_value_heads": 1, "num_attention_heads": 2, "intermediate_size": 96, "num_hidden_layers": 2},
    ),
    "depth-pruned": ("llama", {"num_hidden_layers": 1}),
    # one layer with a window of five tokens
    "qwen2": ("qwen2", {"num_hidden_layers": 2, "max_window_layers": 1}),
    "gpt2": ("gpt2", {"n_layer": 2}),
}


Written = Callable[[str, OnnxType], tuple[Checkpoint, Path]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """(checkpoint, folder with its artifact) of one of MODELS: each graph is traced once."""

    @cache
    def make(name: str, kind: OnnxType) -> tuple[Checkpoint, Path]:
        folder = tmp_path_factory.mktemp("onnx")
        return exported(*MODELS[name], folder, OnnxExport(type=kind)), folder

    return make


def told(checkpoint: Checkpoint, folder: Path, settings: OnnxExport) -> RoundTrip:
    with FreshProcess("onnxruntime", folder / "artifact", 1, 64) as process:
        assert min(process.speed(IDS[0, :32], 4).values()) > 0
        return verify(process, settings.expect(checkpoint, IDS, load), IDS)


def same_with_the_cache(folder: Path) -> None:
    """A text read in half and continued token by token gives the likeliest tokens of the whole text."""
    runtime = OnnxRuntime(str(folder), 1, 64)
    best = runtime.logits(IDS[0].numpy()).argmax(-1)
    assert runtime.prefill(IDS[0, :24].numpy()) == best[23]
    assert [runtime.step(int(token)) for token in IDS[0, 24:]] == list(best[24:])


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "gpt2" else n for n in MODELS])
def test_fp32_says_what_the_model_says(name: str, written: Written) -> None:
    checkpoint, folder = written(name, OnnxType.fp32)
    found = told(checkpoint, folder, OnnxExport())
    assert found.verified and found.emulation is None and found.mean_kl < 1e-8, found
    same_with_the_cache(folder / "artifact")
    # nothing in it depends on where it was made
    assert b"site-packages" not in (folder / "artifact" / FILE).read_bytes()


@pytest.mark.parametrize("name", ["llama tied", "width-pruned", "gpt2"])
def test_int8_says_what_the_same_scheme_says_in_torch(name: str, written: Written) -> None:
    checkpoint, folder = written(name, OnnxType.int8)
    found = told(checkpoint, folder, OnnxExport(type=OnnxType.int8))
    assert found.verified and found.emulation is not None, found
    assert found.emulation["mean_kl"] < 1e-3 and found.emulation["mean_kl"] < found.mean_kl / 3
    same_with_the_cache(folder / "artifact")
    # no product is left in floating point but those of attention, and the small rotations: one for all that reads the
    # same, and of a tied embedding and its head
    nodes = onnx.load(folder / "artifact" / FILE, load_external_data=False).graph.node
    layers = 4 if name == "gpt2" else 7
    assert sum(node.op_type == "MatMulInteger" for node in nodes) == 2 * layers + 1
    rotations = 2 * 4 + 2 if name != "width-pruned" else 2 * 4 + 1
    assert sum(node.op_type == "MatMul" for node in nodes) == 2 * 2 + rotations


@pytest.mark.parametrize("family", ["llama-biases", "gpt2"])
def test_codes_that_are_given_read_inputs_in_two_parts(family: str, tmp_path: Path) -> None:
    """Nothing is rounded but the inputs: in two parts they lose a 254th, so a ten thousandth in KL."""
    one_layer = {"n_layer" if family == "gpt2" else "num_hidden_layers": 1}
    one_layer["tie_word_embeddings"] = True
    config, _ = save(family, tmp_path / "named", **one_layer)
    on_int8 = dict.fromkeys([*linear_paths(config), adapter_for(config).modules.embedding], "int8")
    checkpoint, _, _ = quantized(family, tmp_path / "q", on_int8, **one_layer)
    lost, answers = {}, {}
    for activations in InputType:
        settings = OnnxExport(type=OnnxType.int8, activations=activations)
        _, emulated, _ = write.expected(checkpoint, settings, IDS, load)
        answers[activations] = emulated
        lost[activations] = compare(answer(dense_model(checkpoint, torch.float32), IDS), emulated, 1.0).mean_kl
    assert lost[InputType.int16] < 1e-3 * lost[InputType.int8], lost
    settings = OnnxExport(type=OnnxType.int8)
    _, by_default, _ = write.expected(checkpoint, settings, IDS, load)
    assert torch.equal(by_default, answers[InputType.int16])
    if family == "gpt2":
        return  # biases are in the other's graph too
    settings.write(checkpoint, tmp_path / "artifact")
    found = told(checkpoint, tmp_path, settings)
    assert found.verified and found.emulation is not None and found.emulation["mean_kl"] < 1e-6, found
    same_with_the_cache(tmp_path / "artifact")


def test_activations_without_an_int8_product_are_refused() -> None:
    with pytest.raises(UserError, match="activations=int16"):
        OnnxExport(activations=InputType.int16)


def test_a_padded_batch_and_nothing_else_changes(written: Written, tmp_path: Path) -> None:
    """Rows of different lengths, padded on the left, answer as each does alone; the same checkpoint, the same bytes."""
    checkpoint, folder = written("llama tied", OnnxType.fp32)
    session = onnxruntime.InferenceSession(str(folder / "artifact" / FILE))
    past = {
        given.name: np.zeros((2, given.shape[1], 0, given.shape[3]), np.float32)
        for given in session.get_inputs()
        if given.name.startswith("past.")
    }
    texts = [IDS[0, :12].numpy(), IDS[0, 20:27].numpy()]
    ids, mask, positions = (np.zeros((2, 12), np.int64) for _ in range(3))
    for row, text in enumerate(texts):
        ids[row, -len(text) :], mask[row, -len(text) :] = text, 1
        positions[row, -len(text) :] = np.arange(len(text))
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **past}
    logits = session.run(["logits"], given)[0]
    alone = OnnxRuntime(str(folder / "artifact"), 1, 64)
    for row, text in enumerate(texts):
        np.testing.assert_allclose(logits[row, -len(text) :], alone.logits(text), atol=1e-4)
    OnnxExport().write(checkpoint, tmp_path / "again")
    for name in (FILE, DATA):
        assert (tmp_path / "again" / name).read_bytes() == (folder / "artifact" / name).read_bytes(), name


def test_verify_repeats_the_comparison_and_names_what_is_damaged(written: Written, tmp_path: Path) -> None:
    checkpoint, made = written("depth-pruned", OnnxType.fp32)
    folder = shutil.copytree(made / "artifact", tmp_path / "artifact")
    expectation = OnnxExport().expect(checkpoint, IDS, load)
    probe.keep(folder, IDS, expectation, {"format": "onnx", "runtime": "onnxruntime"})
    write_manifest(folder)
    ask = ["mode=verify", f"artifact={folder}", "threads=1"]
    told = run_overrides(ask)
    assert told["status"] == 0 and "onnxruntime answers as it did" in told["message"]
    graph, content = (folder / FILE).read_bytes(), bytearray((folder / DATA).read_bytes())
    content[-5] ^= 1
    (folder / DATA).write_bytes(bytes(content))
    with pytest.raises(UserError, match=rf"written: tensor [\w.]+ of {DATA}"):
        run_overrides(ask)
    (folder / DATA).write_bytes(bytes(content[:-100]))
    with pytest.raises(UserError, match=f"written: {DATA}"):
        run_overrides(ask)
    # two files that exist, swapped
    (folder / FILE).write_bytes(bytes(content))
    (folder / DATA).write_bytes(graph)
    with pytest.raises(UserError, match=f"written: {FILE}, .*{DATA}"):
        run_overrides(ask)
    # other weights, under a manifest of their own
    (folder / FILE).write_bytes(graph)
    (folder / DATA).write_bytes(bytes(np.frombuffer(bytes(content), np.float32) * 2))
    write_manifest(folder)
    told = run_overrides(ask)
    assert told["status"] == 1 and "FAILED" in told["message"]


def test_codes_are_not_rounded_twice(tmp_path: Path) -> None:
    from compress.grids import Int8, grid_named

    weight = torch.randn(64, 64)
    own = Int8().encode(weight)
    assert write._on_int8("w", own, Int8(), False, False) is own
    grid = grid_named("int4_g32")
    with pytest.raises(UserError, match="int4_g32"):
        write._on_int8("w", grid.encode(weight), grid, False, False)


def test_what_exact_int8_computations_differ_by_is_said_and_excuses_nothing(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, _ = written("llama tied", OnnxType.fp32)
    settings = OnnxExport(type=OnnxType.int8)
    _, emulated, apart = write.expected(checkpoint, settings, IDS, load)
    assert emulated is not None and 0 < apart < 5e-3
    plain = settings.expect(checkpoint, IDS, load)
    assert plain.tolerance == 1e-2 and "apart" not in plain.scheme
    monkeypatch.setattr(write, "last_bits_moved", lambda x: torch.where(x.abs() < 1, 0.0, x))
    told = settings.expect(checkpoint, IDS, load)
    assert told.tolerance == 1e-2 and "apart on this model" in told.scheme
    exact = OnnxExport().expect(checkpoint, IDS, load)
    assert exact.tolerance == 1e-4 and exact.emulated is None


@pytest.mark.parametrize("name", MODELS)
def test_rotated_int8_loses_less_than_plain_int8(name: str, tmp_path: Path) -> None:
    family, overrides = MODELS[name]
    save(family, tmp_path, **overrides)
    checkpoint = Checkpoint(tmp_path, frozenset({DENSE}))
    lost = {}
    for rotate in (True, False):
        settings = OnnxExport(type=OnnxType.int8, rotate=rotate, activations=InputType.int8)
        pipeline, emulated, _ = write.expected(checkpoint, settings, IDS, load)
        assert emulated is not None
        lost[rotate] = compare(pipeline, emulated, 1.0).mean_kl
    assert lost[True] < lost[False] < 1e-2, lost
