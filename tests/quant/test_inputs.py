"""Static INT8 activations: one range per layer, from calibration to the artifact that runs on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from compress_kernels import linear_int8

import compress
from compress.grids.int8 import fake_quantize
from compress.quant.inputs import RoundedInputs, best_range
from compress.quant.stage import Activations
from compress.runtime.int8 import Int8Linear
from tests.models import save
from tests.pipelines.helpers import tiny_run

GENERATOR = torch.Generator().manual_seed(0)


def relative_error(x: torch.Tensor, largest: float) -> float:
    lost = (fake_quantize(x, largest) - x).square().sum(-1)
    return float((lost / x.square().sum(-1)).mean())


def test_the_range_is_near_the_best_and_no_loud_token_rules_it() -> None:
    x = torch.randn(4, 64, 96, generator=GENERATOR)
    x[:, 0] *= 2000
    found = best_range([x[:2], x[2:]])
    assert 2 < found < 8
    best = min(relative_error(x, found * factor) for factor in (0.5, 0.7, 0.8, 1.0, 1.25, 1.4, 2.0, 2000.0))
    assert relative_error(x, found) < 1.1 * best
    assert best_range([torch.zeros(2, 3, 4)]) == 1.0


def test_layers_that_share_an_input_share_its_range_and_round_once_it_is_known() -> None:
    inputs = RoundedInputs(Activations.int8_static)
    x = torch.randn(3, 8, generator=GENERATOR)
    assert torch.equal(inputs.round("a", x), x)
    (rounded,) = inputs.settle(["a", "b"], [x])
    assert inputs.ranges["a"] == inputs.ranges["b"] and not torch.equal(rounded, x)
    assert torch.equal(inputs.round("b", x), rounded)
    assert torch.equal(inputs.round("c", x), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_the_layer_multiplies_what_the_rounding_gives(rows: int, dtype: torch.dtype) -> None:
    codes = torch.randint(-127, 128, (24, 48), generator=GENERATOR, dtype=torch.int8)
    absmax, bias = torch.rand(24, generator=GENERATOR), torch.randn(24, generator=GENERATOR)
    x = (3 * torch.randn(2, rows, 48, generator=GENERATOR)).to(dtype)
    largest = torch.tensor([2.5])  # some numbers are clipped
    expected = fake_quantize(x.double(), 2.5) @ (codes.double() * (absmax.double() / 127)[:, None]).t() + bias
    got = linear_int8(x, codes, absmax, bias, largest)
    assert got.dtype == dtype and got.shape == (2, rows, 24)
    torch.testing.assert_close(got.double(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "llama-biases"])
def test_an_artifact_runs_on_its_static_ranges(family: str, text_file: Path, tmp_path: Path, cache: Path) -> None:
    save(family, tmp_path / "model")
    overrides = ["stages.quant.activations=int8_static", "stages.quant.calibration.tokens=512"]
    report = compress.run(tiny_run("int8_smooth", tmp_path / "model", text_file, tmp_path / "out", *overrides))
    artifacts = {artifact["format"]: artifact for artifact in report["artifacts"]}
    # transformers loads no compressed Conv1D
    assert set(artifacts) == ({"hf"} if family == "gpt2" else {"hf", "compressed_tensors"}), report["artifacts"]
    assert all(artifact["verified"] for artifact in artifacts.values()), artifacts
    model = compress.load(artifacts["hf"]["path"])
    layers = [m for m in model.modules() if isinstance(m, Int8Linear)]
    assert len(layers) > 4 and all(m.input_absmax is not None and float(m.input_absmax) > 0 for m in layers)
    # of the weights as folding left them, not of the checkpoint's own
    assert 0 < max(report["stages"][0]["details"]["relative_error"].values()) < 0.02


def test_weights_alone_are_exported_as_weights_alone(tiny_llama: Path, text_file: Path, tmp_path: Path) -> None:
    overrides = ["stages.quant.activations=none"]
    report = compress.run(tiny_run("int8", tiny_llama, text_file, tmp_path / "out", *overrides))
    artifacts = {artifact["format"]: artifact for artifact in report["artifacts"]}
    assert all(artifact["verified"] for artifact in artifacts.values()), artifacts
    config = json.loads((Path(artifacts["compressed_tensors"]["path"]) / "config.json").read_text())
    assert config["quantization_config"]["config_groups"]["group_0"]["input_activations"] is None


def test_training_keeps_the_static_ranges(tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    overrides = ["stages.quant.activations=int8_static", "stages.quant.calibration.tokens=512"]
    report = compress.run(tiny_run("qat_int8", tiny_llama, text_file, tmp_path / "out", *overrides))
    artifact = next(artifact for artifact in report["artifacts"] if artifact["format"] == "hf")
    assert artifact["verified"], artifact["error"]
    model = compress.load(artifact["path"])
    assert all(m.input_absmax is not None for m in model.modules() if isinstance(m, Int8Linear))
    assert 0 < max(report["stages"][0]["details"]["relative_error"].values()) < 0.03
