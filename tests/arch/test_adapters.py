"""What the adapters say is true of the models transformers builds."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from compress.arch import FAMILIES, adapter_for
from compress.errors import UserError
from tests.models import VARIANTS, tiny


def on_meta(config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def test_imports_stay_light():
    code = "import sys, compress.arch, compress.prune.plan; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_is_laid_out_and_nothing_else(name):
    config, model = tiny(name)
    adapter = adapter_for(config)
    widths = adapter.shape(config).widths
    for key, tensor in model.state_dict().items():
        assert tuple(axis.size(widths) for axis in adapter.axes(config, key)) == tuple(tensor.shape), key
    layer = adapter.modules.layer(0)
    parameters = {key for key, _ in model.get_submodule(layer).named_parameters()}
    assert parameters == set(adapter.layer_tensors(config, adapter.shape(config)))


@pytest.mark.parametrize("name", VARIANTS)
def test_parameter_count_is_exact(name):
    config, _ = tiny(name)
    adapter = adapter_for(config)
    model = on_meta(config)
    outside = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    if adapter.modules.positions:
        outside.add(id(model.get_submodule(adapter.modules.positions).weight))
    expected = sum(p.numel() for p in model.parameters() if id(p) not in outside)
    assert adapter.non_embedding_parameters(config) == expected


@pytest.mark.parametrize("name", VARIANTS)
def test_modules_are_where_the_adapter_says(name):
    config, model = tiny(name)
    adapter, shape = adapter_for(config), adapter_for(config).shape(config)
    modules = adapter.modules
    assert model.get_submodule(modules.embedding) is model.get_input_embeddings()
    assert model.get_submodule(modules.head) is model.get_output_embeddings()
    assert shape.tied == (model.get_input_embeddings().weight is model.get_output_embeddings().weight)
    assert model.get_submodule(modules.stack) is model.base_model
    assert len(model.get_submodule(modules.layers)) == shape.layers
    read = {}
    for path in (modules.neurons(1), modules.head_outputs(1), *modules.norms(1), modules.final_norm):
        hook = lambda _module, inputs, path=path: read.__setitem__(path, inputs[0].shape[-1])  # noqa: E731
        model.get_submodule(path).register_forward_pre_hook(hook)
    model(torch.arange(8)[None])
    assert read.pop(modules.neurons(1)) == shape.mlp
    assert read.pop(modules.head_outputs(1)) == shape.heads * shape.head_dim
    assert set(read.values()) == {shape.hidden}
    layer = modules.layer(1)
    linears = {f"{layer}.{path}": module for path, module in model.get_submodule(layer).named_modules()}
    linears = {path: module for path, module in linears.items() if isinstance(module, (nn.Linear, Conv1D))}
    assert set(modules.linears(1)) == set(linears)
    assert all(isinstance(module, Conv1D) == modules.conv1d for module in linears.values())


def test_a_head_size_that_the_config_does_not_state():
    config, _ = tiny("qwen2-implicit_head_dim")
    assert not hasattr(config, "head_dim")
    assert adapter_for(config).shape(config).head_dim == 16


def test_other_architectures_are_refused_naming_the_families():
    for config in (SimpleNamespace(model_type="gemma2"), SimpleNamespace()):
        with pytest.raises(
            UserError, match=r"are not supported\.\n.*llama, mistral, qwen2, qwen3, smollm3, gpt2, gpt_neox "
        ):
            adapter_for(config)
    assert list(FAMILIES) == [FAMILIES[family].family for family in FAMILIES]


def test_variants_of_a_family_that_are_something_else_are_refused():
    config = AutoConfig.for_model("gpt2", add_cross_attention=True)
    with pytest.raises(UserError, match="add_cross_attention"):
        adapter_for(config).shape(config)
    config = AutoConfig.for_model("llama", num_hidden_layers=4, per_layer_config={0: {"intermediate_size": 128}})
    with pytest.raises(UserError, match="per_layer_config"):
        adapter_for(config).shape(config)
