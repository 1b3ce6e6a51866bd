"""The config of a pruned model says, after a plain save and reload, exactly what remains."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from compress.arch import Widths, adapter_for
from compress.errors import UserError
from tests.models import VARIANTS, tiny


@dataclass(frozen=True)
class Kept:
    layers: tuple[int, ...]
    widths: Widths


def prune(config, tmp_path, layers=None, **widths):
    """The pruned config as a reload of the saved one sees it."""
    shape = adapter_for(config).shape(config)
    layers = tuple(range(shape.layers)) if layers is None else layers
    before = config.to_dict()
    pruned = adapter_for(config).pruned_config(
        config, Kept(layers, replace(shape.widths, layers=len(layers), **widths))
    )
    assert config.to_dict() == before
    pruned.save_pretrained(tmp_path)
    return AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", VARIANTS)
def test_sizes_survive_a_reload_and_nothing_else_changes(name, tmp_path):
    config, _ = tiny(name)
    adapter, shape = adapter_for(config), adapter_for(config).shape(config)
    heads = shape.kv_heads // 2
    hidden = heads * shape.head_dim if name.startswith("gpt") else 48
    pruned = prune(config, tmp_path, (0, 3), mlp=40, heads=heads, hidden=hidden)
    expected = replace(shape, layers=2, mlp=40, heads=shape.heads // 2, kv_heads=heads, hidden=hidden)
    assert adapter.shape(pruned) == expected
    changed = {key for key, value in pruned.to_dict().items() if value != config.to_dict().get(key)}
    sizes = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"}
    sizes |= {"n_embd", "n_inner", "n_layer", "n_head", "head_dim"}
    assert changed <= sizes | {"layer_types", "no_rope_layers", "max_window_layers", "_name_or_path"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(pruned)
    for key, tensor in model.state_dict().items():
        assert tuple(axis.size(expected.widths) for axis in adapter.axes(pruned, key)) == tuple(tensor.shape), key
    assert adapter.non_embedding_parameters(config, expected.widths) == adapter.non_embedding_parameters(pruned)


@pytest.mark.parametrize("name", [name for name in VARIANTS if not name.startswith("gpt")])
@pytest.mark.parametrize("cut", [{"heads": 1}, {"hidden": 48}])
def test_the_head_size_outlives_a_cut_of_width_or_heads(name, cut, tmp_path):
    config, _ = tiny(name)
    adapter = adapter_for(config)
    pruned = prune(config, tmp_path, **cut)
    assert pruned.head_dim == adapter.shape(pruned).head_dim == adapter.shape(config).head_dim


@pytest.mark.parametrize(
    ("name", "kept", "types", "full_first"),
    [  # s: sliding, f: full attention; the number of first layers without a window
        ("qwen2", (0, 1, 3), "ffs", 2),
        ("qwen2", (0, 2, 3), "fss", 1),
        ("qwen2", (2, 3), "ss", 0),
        ("qwen2", (0, 1), "ff", 2),
        ("qwen3", (0, 3), "fs", 1),
        ("qwen3", (1,), "s", 0),
    ],
)
def test_windows_stay_with_their_layers(name, kept, types, full_first, tmp_path):
    config, _ = tiny(name)
    pruned = prune(config, tmp_path, kept)
    assert "".join(kind[0] for kind in pruned.layer_types) == types
    assert pruned.max_window_layers == full_first
    assert pruned.sliding_window == 5
    # runtimes that know only max_window_layers come to the same, and so does transformers without the list
    fields = {key: value for key, value in pruned.to_dict().items() if key != "layer_types"}
    assert type(config)(**fields).layer_types == pruned.layer_types


def test_no_windows_stay_no_windows(tmp_path):
    config, _ = tiny("qwen2", use_sliding_window=False, max_window_layers=28)
    pruned = prune(config, tmp_path, (1, 3))
    assert pruned.layer_types == ["full_attention"] * 2
    assert pruned.max_window_layers == 2
    assert pruned.sliding_window is None


@pytest.mark.parametrize(("name", "rope"), [("smollm3", [0, 0]), ("smollm3-intervals", [0, 0])])
def test_rotary_positions_stay_with_their_layers(name, rope, tmp_path):
    config, _ = tiny(name)
    pruned = prune(config, tmp_path, (1, 3))
    assert pruned.no_rope_layers == rope
    assert pruned.layer_types == [config.layer_types[1], config.layer_types[3]]


def test_a_rope_list_longer_than_the_model_is_cut_too(tmp_path):
    config, _ = tiny("smollm3", no_rope_layers=[1, 0, 1, 0, 1, 1])
    assert prune(config, tmp_path, (0, 3)).no_rope_layers == [1, 0]


def test_lists_that_are_not_per_layer_stay(tmp_path):
    config, _ = tiny("llama", eos_token_id=[1, 2, 3, 4])
    assert prune(config, tmp_path, (0, 3)).eos_token_id == [1, 2, 3, 4]


def test_gpt2_states_its_inner_width_once_the_width_changes(tmp_path):
    config, _ = tiny("gpt2-untied")
    assert config.n_inner is None
    pruned = prune(config, tmp_path, heads=2, hidden=32)
    assert pruned.n_inner == 256


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize(("cut", "fits"), [({"heads": 2}, 32), ({"hidden": 32}, 64), ({"heads": 3, "hidden": 32}, 48)])
def test_families_without_a_head_size_refuse_to_cut_width_or_heads_alone(name, cut, fits, tmp_path):
    config, _ = tiny(name)
    with pytest.raises(UserError, match=rf"(?s)no head size.* width of {fits}\b"):
        prune(config, tmp_path, **cut)
    widths = replace(adapter_for(config).shape(config).widths, **cut)
    with pytest.raises(UserError, match="no head size"):
        adapter_for(config).check(config, widths)
    adapter_for(config).check(config, replace(widths, heads=3, hidden=48))


def test_what_transformers_refuses_is_said_in_words(tmp_path):
    config, _ = tiny("llama", num_attention_heads=6, num_key_value_heads=3, hidden_size=96)
    with pytest.raises(UserError, match=r"hidden size \(64\) is not a multiple.*heads \(6\)"):
        prune(config, tmp_path, hidden=64)
    config, _ = tiny("qwen3", num_attention_heads=6, num_key_value_heads=3, hidden_size=96)
    assert prune(config, tmp_path, hidden=64).hidden_size == 64  # Llama's own rule


def test_gpt2_scaled_by_layer_number_keeps_its_layers(tmp_path):
    config, _ = tiny("gpt2", scale_attn_by_inverse_layer_idx=True)
    assert prune(config, tmp_path, mlp=64).n_inner == 64
    with pytest.raises(UserError, match="scale_attn_by_inverse_layer_idx"):
        prune(config, tmp_path, (0, 2))
