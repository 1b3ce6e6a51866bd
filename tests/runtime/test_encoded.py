"""Quantized checkpoints on disk: every layout gives back what was encoded, and loads as the model it stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import compress
from compress.arch import adapter_for
from compress.arch.linears import linear_paths
from compress.grids import GRIDS, Encoded, Int8, grid_named
from compress.runtime.encoded import decoded_state, encoded_tensors, quantization_of
from compress.runtime.four_bit import FourBitLinear
from tests.models import FAMILIES, tiny
from tests.runtime.checkpoints import quantized

WIDE = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 256}
"""Rows that are whole blocks of every grid."""
IDS = torch.arange(5, 45)[None]


def expected_weights(model, grids: dict[str, str]) -> dict[str, torch.Tensor]:
    """Parameter name -> round-to-nearest weight, computed without any file."""
    conv1d, linears = adapter_for(model.config).modules.conv1d, set(linear_paths(model.config))
    found = {}
    for path, name in grids.items():
        weight = model.get_submodule(path).weight.detach()
        transposed = conv1d and path in linears
        grid = grid_named(name)
        value = grid.decode(grid.encode(weight.t().contiguous() if transposed else weight))
        found[f"{path}.weight"] = value.t() if transposed else value
    return found


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def dense_with(model, weights: dict[str, torch.Tensor]):
    """The dense model with those weights in it."""
    model.load_state_dict(model.state_dict() | weights)
    model.tie_weights()
    return model


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_our_layout_gives_back_what_was_encoded(name: str, tmp_path: Path) -> None:
    """Linears and a tied embedding on every grid."""
    config, _ = tiny("llama-tied", **WIDE)
    grids = dict.fromkeys([*linear_paths(config), "model.embed_tokens"], name)
    checkpoint, metrics, model = quantized("llama-tied", tmp_path, grids, **WIDE)
    block = quantization_of(checkpoint.raw_config)
    assert block is not None and block["grids"] == metrics["grids"] == grids
    weights = expected_weights(model, grids)
    stored = 0
    for stored_name, value, grid in encoded_tensors(checkpoint):
        if isinstance(value, Encoded):
            assert grid is not None and grid.name == name
            assert torch.equal(grid.decode(value), weights.pop(stored_name))
            stored += value.bytes()
        else:
            assert torch.equal(value, model.state_dict()[stored_name])
    assert not weights and "lm_head.weight" not in checkpoint.shards
    numel = sum(model.get_submodule(path).weight.numel() for path in grids)
    assert metrics["bits_per_weight"] == 8 * stored / numel
    loaded = compress.load(str(checkpoint.folder))
    outer = loaded.get_input_embeddings(), loaded.get_output_embeddings()
    if len(torch.unique(grid_named(name).levels)) <= 16:  # four bits stay four bits, and the tied matrix is there once
        layers = [module for module in loaded.modules() if isinstance(module, FourBitLinear)]
        assert len(layers) == len(grids) and outer[0].codes.data_ptr() == outer[1].codes.data_ptr()
        assert {name for name, _ in loaded.named_parameters() if "norm" not in name} == set()
        assert loaded.generate(IDS, max_new_tokens=2, do_sample=False).shape == (1, IDS.shape[1] + 2)
    else:
        assert outer[0].weight is outer[1].weight
    torch.testing.assert_close(logits(loaded), logits(dense_with(model, expected_weights(model, grids))))


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_grids_load_in_every_family(family: str, tmp_path: Path) -> None:
    config, _ = tiny(family)
    names = ("q4_0", "q5_1", "int4_g32_asym", "nf4", "q8_0", "int3_g64", "int8")
    modules = adapter_for(config).modules
    paths = [*linear_paths(config), modules.embedding]
    grids = {path: names[i % len(names)] for i, path in enumerate(paths)}
    checkpoint, metrics, model = quantized(family, tmp_path, grids)
    assert not metrics["left_dense"]
    loaded = compress.load(str(checkpoint.folder))
    weights = expected_weights(model, grids)
    torch.testing.assert_close(logits(loaded), logits(dense_with(model, weights)), rtol=1e-4, atol=1e-4)
    state = decoded_state(checkpoint)
    assert len(weights) == len(paths) and all(torch.equal(state[name], value) for name, value in weights.items())


@pytest.mark.parametrize("name", ["nf4", "nf4_b32_single", "fp4_b128", "nf4_b64_single"])
def test_decodes_to_what_bitsandbytes_decodes(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from compress.runtime.four_bit import dequantized

    config, _ = tiny("llama", **WIDE)
    checkpoint, _, model = quantized("llama", tmp_path, dict.fromkeys(linear_paths(config), name), **WIDE)
    assert checkpoint.raw_config["quantization_config"]["quant_method"] == "bitsandbytes"
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint.folder)
    ours = decoded_state(checkpoint, torch.float32)
    for path in linear_paths(config):
        assert torch.equal(dequantized(theirs.get_submodule(path)), ours[f"{path}.weight"])
    plain = expected_weights(model, dict.fromkeys(linear_paths(config), name))
    assert all(torch.equal(ours[key], value) for key, value in plain.items())
    grids = {n: g.name for n, v, g in encoded_tensors(checkpoint) if g is not None}
    assert set(grids.values()) == {name} and len(grids) == len(linear_paths(config))


@pytest.mark.parametrize("family", ["llama-biases", "gpt2", "gpt_neox"])
def test_int8_of_bitsandbytes_and_of_our_layout_are_one_model(family: str, tmp_path: Path) -> None:
    """The same codes with and without an embedding on a grid: only the latter is a layout of ours."""
    from compress.runtime.int8 import Int8Linear

    config, _ = tiny(family)
    grids = dict.fromkeys(linear_paths(config), "int8")
    theirs, _, _ = quantized(family, tmp_path / "a", grids, "int8_token")
    outer = {adapter_for(config).modules.embedding: "q8_0"}
    ours, _, _ = quantized(family, tmp_path / "b", grids | outer, "int8_token")
    assert quantization_of(theirs.raw_config) is None
    block = quantization_of(ours.raw_config)
    assert block is not None and block["activations"] == "int8_token"
    encoded = [{name: v.parts for name, v, g in encoded_tensors(c) if g == Int8()} for c in (theirs, ours)]
    assert encoded[0].keys() == encoded[1].keys() and len(encoded[0]) == len(grids)
    for name, parts in encoded[0].items():
        assert all(torch.equal(parts[part], encoded[1][name][part]) for part in parts)
    models = [compress.load(str(c.folder)) for c in (theirs, ours)]
    for model in models:
        assert sum(isinstance(module, Int8Linear) for module in model.modules()) == len(grids)
    models[1].get_input_embeddings().weight.data.copy_(models[0].get_input_embeddings().weight)
    if config.tie_word_embeddings:
        models[1].tie_weights()
    torch.testing.assert_close(logits(models[0]), logits(models[1]))


def test_shapes_that_do_not_fit_stay_dense(tmp_path: Path) -> None:
    """Ragged last blocks: rows of 48 are no whole blocks of 32; the rest of the model is quantized all the same."""
    narrow = {"hidden_size": 48, "head_dim": 12, "intermediate_size": 128}
    config, _ = tiny("llama", **narrow)
    grids = dict.fromkeys([*linear_paths(config), "model.embed_tokens"], "q4_0")
    checkpoint, metrics, model = quantized("llama", tmp_path, grids, **narrow)
    fitting = {path for path in linear_paths(config) if path.endswith("down_proj")}
    assert set(metrics["grids"]) == fitting
    assert set(metrics["left_dense"]) == set(grids) - fitting
    expected = dense_with(model, expected_weights(model, dict.fromkeys(fitting, "q4_0")))
    torch.testing.assert_close(logits(compress.load(str(checkpoint.folder))), logits(expected))


def test_a_grid_no_layer_fits_is_refused(tmp_path: Path) -> None:
    from compress.errors import UserError

    narrow = {"hidden_size": 48, "head_dim": 12, "intermediate_size": 112}
    config, _ = tiny("llama", **narrow)
    with pytest.raises(UserError, match="no linear layer"):
        quantized("llama", tmp_path, dict.fromkeys(linear_paths(config), "q4_0"), **narrow)


@pytest.mark.parametrize("shape", [(1, 64), (64, 1), (1, 1), (3, 5)])
def test_one_row_and_one_column(shape: tuple[int, int]) -> None:
    """INT8 takes any shape; every grid says which it takes, and takes those."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for grid in GRIDS.values():
        assert grid.fits(shape) or grid.name != "int8"
        if grid.fits(shape):
            decoded = grid.decode(grid.encode(weight))
            assert decoded.shape == shape and float((decoded - weight).norm()) < 0.5 * float(weight.norm())
