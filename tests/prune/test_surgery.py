"""A pruned checkpoint, reloaded by plain transformers, computes what the dense model with silenced groups computes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from compress.arch import FAMILIES, Axis, adapter_for
from compress.errors import UserError
from compress.prune.plan import Plan
from compress.prune.surgery import entries, prune_tensor
from tests.models import VARIANTS, save, tiny
from tests.prune.masked import masked, prune_folder

CUTS = ("mlp", "heads", "query_heads", "hidden", "heads+hidden", "layers", "all")
# GPT-2 and NeoX cannot state a head size (refused, see tests/arch); without groups a query head is a group
POSSIBLE = [
    (name, cut)
    for name in VARIANTS
    for cut in CUTS
    if not (name.startswith("gpt") and cut in ("heads", "query_heads", "hidden"))
    and not (name == "llama-no_gqa" and cut == "query_heads")
]
IDS = torch.randint(3, 300, (2, 24), generator=torch.Generator().manual_seed(1))  # well beyond the window of 5


def make_plan(config, cut, seed=0):
    """Scattered choices that differ from layer to layer."""
    shape = adapter_for(config).shape(config)
    generator = torch.Generator().manual_seed(seed)

    def some(keep, groups):
        return tuple(sorted(torch.randperm(groups, generator=generator)[:keep].tolist()))

    plan = Plan.full(shape)
    if cut in ("mlp", "all"):
        plan = replace(plan, mlp=tuple(some(shape.mlp // 2, shape.mlp) for _ in plan.mlp))
    if cut in ("heads", "heads+hidden", "all"):
        plan = replace(plan, heads=tuple(some(shape.kv_heads // 2, shape.kv_heads) for _ in plan.heads))
    if "heads" in cut or cut == "all":
        fewer = cut == "query_heads" or (cut == "all" and shape.queries > 1)
        keep = shape.queries // 2 if fewer else shape.queries
        chosen = [[some(keep, shape.queries) for _ in groups] for groups in plan.heads]
        plan = replace(
            plan,
            query_heads=tuple(
                tuple(
                    group * shape.queries + query
                    for group, queries in zip(groups, picked, strict=True)
                    for query in queries
                )
                for groups, picked in zip(plan.heads, chosen, strict=True)
            ),
        )
    if cut in ("hidden", "heads+hidden", "all"):
        plan = replace(plan, hidden=some(shape.hidden // 2, shape.hidden))
    if cut in ("layers", "all"):
        plan = replace(plan, layers=(0, 2, 3))
    return plan


@torch.no_grad()
@pytest.mark.parametrize(("name", "cut"), POSSIBLE)
def test_pruned_equals_dense_with_silenced_groups(name, cut, tmp_path):
    config, dense = save(name, tmp_path / "dense", tokenizer=False)
    plan = make_plan(config, cut)
    pruned = prune_folder(tmp_path / "dense", tmp_path / "pruned", plan)
    actual = pruned(IDS, use_cache=False).logits
    torch.testing.assert_close(actual, masked(dense, plan)(IDS, use_cache=False).logits, atol=2e-5, rtol=1e-4)
    assert (actual - dense(IDS, use_cache=False).logits).abs().mean() > 0.05  # the cut was not a trifle


@torch.no_grad()
@pytest.mark.parametrize("kept", [(1, 3), (0, 1, 3), (1, 2, 3), (2,)])
@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen3", "smollm3", "smollm3-intervals"])
def test_remaining_layers_keep_their_own_window_and_positions(name, kept, tmp_path):
    config, dense = save(name, tmp_path / "dense", tokenizer=False)
    plan = replace(Plan.full(adapter_for(config).shape(config)), layers=kept)
    pruned = prune_folder(tmp_path / "dense", tmp_path / "pruned", plan)
    expected = masked(dense, plan)(IDS, use_cache=False).logits
    torch.testing.assert_close(pruned(IDS, use_cache=False).logits, expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_cache_equals_without_after_depth_pruning(family, tmp_path):
    config, _ = save(family, tmp_path / "dense", tokenizer=False)
    plan = replace(make_plan(config, "layers"), layers=(1, 3))
    pruned = prune_folder(tmp_path / "dense", tmp_path / "pruned", plan)
    settings = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    settings |= {"eos_token_id": None, "attention_mask": torch.ones_like(IDS[:, :10])}
    cached = pruned.generate(IDS[:, :10], use_cache=True, **settings)
    plain = pruned.generate(IDS[:, :10], use_cache=False, **settings)
    assert torch.equal(cached.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(plain.logits), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_full_plan_changes_nothing(family):
    config, model = tiny(family)
    plan = Plan.full(adapter_for(config).shape(config))
    for name, tensor in model.state_dict().items():
        assert prune_tensor(name, tensor, plan, adapter_for(config), config) == (name, tensor)
    pruned = adapter_for(config).pruned_config(config, plan)
    assert json.loads(pruned.to_json_string()) == json.loads(config.to_json_string())


def test_old_spellings_and_buffers():
    config, model = tiny("gpt2")
    gpt2, plan = adapter_for(config), make_plan(config, "layers")
    norm = model.transformer.h[3].ln_1.weight.detach()
    assert prune_tensor("h.3.ln_1.weight", norm, plan, gpt2, config)[0] == "h.2.ln_1.weight"
    assert prune_tensor("h.3.attn.bias", torch.ones(1, 1, 8, 8), plan, gpt2, config) is None  # the causal mask
    assert prune_tensor("h.1.ln_1.weight", norm, plan, gpt2, config) is None
    config, model = tiny("gpt_neox")
    neox, plan = adapter_for(config), make_plan(config, "heads+hidden")
    head = model.lm_head.weight.detach()
    name, cut = prune_tensor("embed_out.weight", head, plan, neox, config)
    assert name == "embed_out.weight"
    assert torch.equal(cut, head[:, list(plan.hidden)])
    assert prune_tensor("gpt_neox.layers.0.attention.rotary_emb.inv_freq", torch.ones(4), plan, neox, config) is None


def test_what_does_not_belong_is_refused():
    config, model = tiny("llama")
    llama, plan = adapter_for(config), make_plan(config, "mlp")
    weight = model.model.layers[0].self_attn.q_proj.weight
    for name in ("model.layers.0.self_attn.q_proj.lora_A", "model.layers.4.self_attn.q_proj.weight", "score.weight"):
        with pytest.raises(UserError, match="does not have"):
            prune_tensor(name, weight, plan, llama, config)
    with pytest.raises(UserError, match=r"\(64, 32\).*\(64, 64\)"):
        prune_tensor("model.layers.0.self_attn.q_proj.weight", weight[:, :32], plan, llama, config)


def test_tensors_come_out_contiguous_even_uncut():
    config, model = tiny("gpt2")
    weight = model.transformer.h[0].mlp.c_fc.weight.detach().T.contiguous().T
    plan = Plan.full(adapter_for(config).shape(config))
    _, kept = prune_tensor("transformer.h.0.mlp.c_fc.weight", weight, plan, adapter_for(config), config)
    assert kept.is_contiguous()
    assert torch.equal(kept, weight)


def test_dtype_stays_and_entries_follow_the_layout():
    config, model = tiny("llama")
    plan = make_plan(config, "all")
    name = "model.layers.0.mlp.down_proj.weight"
    weight = model.state_dict()[name].bfloat16()
    _, cut = prune_tensor(name, weight, plan, adapter_for(config), config)
    assert cut.dtype is torch.bfloat16
    assert torch.equal(cut, weight[list(plan.hidden)][:, list(plan.mlp[0])])
    assert entries(Axis("heads", blocks=3, unit=2), (0, 2), 3).tolist() == [0, 1, 4, 5, 6, 7, 10, 11, 12, 13, 16, 17]
