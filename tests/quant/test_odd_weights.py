"""Weights and inputs that no training leaves behind, but somebody's file holds: right, or refused in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compress.checkpoint import Checkpoint
from compress.data import Corpus
from compress.errors import UserError
from compress.grids import GRIDS, fits, grid_named, value_of
from compress.quant.qat import QAT, Trains
from compress.quant.run import share
from compress.quant.scales import check_range
from compress.quant.solve import Calibration, solve
from compress.quant.stage import INT8, NF4, Activations, Algorithm, CalibrationSettings, OnGrid, Scaling
from compress.runtime.loading import load_model
from compress.stage import DENSE, Context, Quiet, Stage
from compress.store import Store
from compress.train.settings import Training
from tests.models import SENTENCES, save

DOCUMENTS = tuple(f"{i} " + " ".join(SENTENCES[(i + j) % 5] for j in range(6)) for i in range(60))
FEW = CalibrationSettings(tokens=512, length=64)
IDS = torch.randint(3, 300, (2, 48), generator=torch.Generator().manual_seed(5))


class Said(Quiet):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def run(stage: Stage, model: Path, to: Path) -> tuple[Checkpoint, dict[str, Any], list[str]]:
    """The stage as the pipeline runs it: result, metrics, and what was said."""
    from lightning.fabric import Fabric

    checkpoint, said = Checkpoint(model, frozenset({DENSE})), Said()
    for folder in (to, to.with_name(f"{to.name}_scratch")):
        folder.mkdir()
    context = Context(
        folder=to,
        scratch=to.with_name(f"{to.name}_scratch"),
        original=checkpoint,
        dense=None,
        corpus=Corpus("it", DOCUMENTS, DOCUMENTS, DOCUMENTS, ""),
        own_text=lambda: torch.empty(0, 64, dtype=torch.long),
        fabric=Fabric(accelerator="cpu", devices=1),
        progress=said,
        store=Store(to.with_name(f"{to.name}_store")),
    )
    result, metrics = stage.run(checkpoint, context)
    return result, metrics, said.lines


def changed(folder: Path, family: str, change: Callable[[dict[str, torch.Tensor]], None], **more: Any) -> Path:
    """A tiny model with tensors changed in its file."""
    save(family, folder, **more)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("stage", [NF4(), INT8()], ids=["nf4", "int8"])
def test_norms_stored_in_fp32_beside_bf16(stage: Stage, tmp_path: Path) -> None:
    """transformers gives 4-bit models what is stored as it is: all of it must be of the type the model computes in."""

    def mixed(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            wide = any(part in name for part in ("norm", "head", "down_proj"))
            tensors[name] = tensor.float() if wide else tensor.bfloat16()

    model = changed(tmp_path / "model", "llama", mixed)
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace('"float32"', '"bfloat16"'))
    result, _, _ = run(stage, model, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(result.folder)
    with torch.no_grad():
        assert bool(loaded(IDS).logits.isfinite().all())
    states = [state.dtype for module in loaded.modules() if (state := getattr(module, "quant_state", None))]
    assert set(states) <= {torch.bfloat16}
    stored = load_file(result.folder / "model.safetensors")
    assert stored["model.norm.weight"].dtype == stored["lm_head.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("grid", ["nf4", "q4_0", "int4_g64", "q5_1"])
def test_a_matrix_of_zeros_stays_one(grid: str, tmp_path: Path) -> None:
    name = "model.layers.3.mlp.down_proj"
    model = changed(tmp_path / "model", "llama", lambda tensors: tensors[f"{name}.weight"].zero_())
    result, metrics, _ = run(OnGrid(grid=grid, algorithm=Algorithm.gptq, calibration=FEW), model, tmp_path / "out")
    assert metrics["relative_error"][name] == metrics["output_error"][name] == 0
    assert all(0 <= error < 1 for error in metrics["output_error"].values())
    with torch.no_grad():
        assert not bool(load_model(result.folder).get_submodule(name)(torch.randn(2, 128)).any())


@pytest.mark.parametrize("algorithm", [Algorithm.rtn, Algorithm.gptq])
def test_weights_beyond_the_scales_are_refused_by_name(algorithm: Algorithm, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj"

    def loud(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{name}.weight"][3, 5] = 1e6

    model = changed(tmp_path / "model", "llama", loud)
    with pytest.raises(UserError, match=rf"{name} has a weight of 1e\+06: larger than the scales of q4_0"):
        run(OnGrid(grid="q4_0", algorithm=algorithm, calibration=FEW), model, tmp_path / "out")


def test_what_scales_can_hold() -> None:
    check_range("it", torch.full((2, 32), 5e5), grid_named("q4_0"))
    check_range("it", torch.full((2, 64), 1e30), grid_named("nf4"))
    with pytest.raises(UserError, match="q5_1"):
        check_range("it", -torch.linspace(1, 1e5, 64).view(2, 32), grid_named("q5_1"))


@pytest.mark.parametrize("grid", ["nf4", "fp4", "int8", "int4_g32", "int3_g32_asym", "q8_0", "q5_1", "q4_0"])
@pytest.mark.parametrize("size", [1e-42, 1e-20, 0.0])
def test_inputs_next_to_nothing(grid: str, size: float) -> None:
    """Of second moments that fp32 divides by, the size is of no account; smaller ones are zeros."""
    torch.manual_seed(0)
    weight, x = torch.randn(32, 64), torch.randn(200, 64)
    gram, settings = x.T @ x / len(x), Calibration()
    found = solve(weight, weight, gram * size, grid_named(grid), settings)
    value = value_of(found.levels, found.scales)
    assert all(map(math.isfinite, (found.error, found.error_rtn, found.weight_error))) and found.weight_error < 0.5
    assert bool(value.isfinite().all())
    if size == 1e-20:
        usual = solve(weight, weight, gram, grid_named(grid), settings)
        assert found.error == pytest.approx(usual.error, rel=0.02)


@pytest.mark.parametrize("grid", [name for name in GRIDS if name.startswith(("q", "int4", "int3"))])
def test_rows_that_are_no_whole_blocks_are_refused_in_words(grid: str) -> None:
    with pytest.raises(ValueError, match="rows of 70 weights are no whole number of blocks"):
        grid_named(grid).encode(torch.randn(5, 70))


@pytest.mark.parametrize("grid", ["nf4", "fp4_b32"])
def test_an_embedding_may_have_any_number_of_rows(grid: str, tmp_path: Path) -> None:
    save("gpt2", tmp_path / "model", vocab_size=321)
    stage = OnGrid(grid="q4_0", embedding=grid, algorithm=Algorithm.rtn)
    result, metrics, said = run(stage, tmp_path / "model", tmp_path / "out")
    assert metrics["left_dense"] == [] and metrics["grids"]["transformer.wte"] == grid_named(grid).name
    assert not any("dense" in line for line in said)
    plain, coded = load_model(result.folder), load_model(result.folder, as_codes=True)
    with torch.no_grad():
        torch.testing.assert_close(coded(IDS).logits, plain(IDS).logits, atol=2e-3, rtol=1e-3)
    assert not fits(grid_named(grid), (321, 64), linear=True)


def test_an_embedding_that_stays_dense_is_called_by_its_name(tmp_path: Path) -> None:
    save("llama", tmp_path / "model", hidden_size=48, intermediate_size=128, head_dim=16)
    stage = OnGrid(grid="int8", embedding="q8_0", algorithm=Algorithm.rtn)
    _, metrics, said = run(stage, tmp_path / "model", tmp_path / "out")
    assert "model.embed_tokens" in metrics["left_dense"]
    assert "model.embed_tokens stays dense: its shape does not fit the grid" in said
    assert not any("layers stay dense" in line for line in said)


def test_training_reports_the_error_of_the_weights_themselves(tmp_path: Path) -> None:
    """At a rate of nothing the codes are those of calibration, and so is their distance to the folded weights."""
    save("llama", tmp_path / "model")
    shared: dict[str, Any] = {"scaling": Scaling.smooth, "algorithm": Algorithm.gptq, "calibration": FEW}
    _, calibrated, _ = run(INT8(**shared), tmp_path / "model", tmp_path / "calibrated")
    still = Training(tokens=256, length=64, rate=1e-12, batch=4)
    stage = QAT(
        grid="int8", activations=Activations.int8_token, trains=Trains.scales, norm_rate=0.0, train=still, **shared
    )
    _, trained, _ = run(stage, tmp_path / "model", tmp_path / "trained")
    for path, error in calibrated["relative_error"].items():
        assert trained["relative_error"][path] == pytest.approx(error, rel=0.02), path


def test_nothing_to_train_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="trains nothing"):
        QAT(grid="nf4", trains=Trains.scales, scale_rate=0, norm_rate=0)


def test_shares_are_said_in_plain_figures() -> None:
    assert [share(x) for x in (0.000054, 0.021, 0.5, 0.996, 1.5, 1234.0)] == [
        "0.0054%",
        "2.1%",
        "50%",
        "100%",
        "150%",
        "123,400%",
    ]
