"""Closed-form compensation: the optimum where one is known, and what it wins on a real forward pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from compress.arch import adapter_for
from compress.prune.compensate import Fit, compensate
from compress.prune.least_squares import fitted, token_weights
from compress.prune.plan import Plan
from compress.prune.readers import Readers
from compress.prune.surgery import prune_tensor
from compress.train.module import last_hidden
from tests.models import tiny

WINDOWS = torch.randint(3, 300, (24, 48), generator=torch.Generator().manual_seed(0))


def nothing(units: float) -> None:
    del units


def test_finds_the_map_that_made_the_targets() -> None:
    torch.manual_seed(0)
    a, w = torch.randn(4, 100, 12), torch.randn(5, 12)
    weights = torch.rand(4, 100) + 0.1
    found = fitted(torch.zeros(5, 12), zip(a.split(2), (a @ w.T).split(2), weights.split(2), strict=True), 1e-8)
    torch.testing.assert_close(found, w, rtol=1e-4, atol=1e-4)


def test_equals_weighted_least_squares() -> None:
    torch.manual_seed(0)
    a, t, weights = torch.randn(2, 50, 6), torch.randn(2, 50, 3), torch.rand(2, 50)
    root = weights.sqrt()[..., None]
    expected = torch.linalg.lstsq((root * a).flatten(0, 1), (root * t).flatten(0, 1)).solution.T
    torch.testing.assert_close(fitted(torch.zeros(3, 6), [(a, t, weights)], 1e-9), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_finds_nearly_the_same(dtype: torch.dtype) -> None:
    """Weights far outside the range of fp16, as those of large streams are, leave nothing at zero or infinite."""
    torch.manual_seed(0)
    a, t = torch.randn(2, 500, 6), torch.randn(2, 500, 3)
    for size in (1e-9, 1e9):
        weights = (torch.rand(2, 500) + 0.1) * size
        exact = fitted(torch.zeros(3, 6), [(a, t, weights)], 0.1)
        found = fitted(torch.zeros(3, 6), [(a.to(dtype), t, weights)], 0.1)
        torch.testing.assert_close(found, exact, rtol=0.02, atol=2e-3)


def test_strong_ridge_keeps_the_start() -> None:
    torch.manual_seed(0)
    start = torch.randn(3, 6)
    found = fitted(start, [(torch.randn(1, 100, 6), torch.randn(1, 100, 3), torch.ones(1, 100))], 1e6)
    torch.testing.assert_close(found, start, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_solved_keeps_the_start() -> None:
    start = torch.ones(2, 4)
    nan = torch.full((1, 8, 4), float("nan"))
    assert torch.equal(fitted(start, [(nan, torch.ones(1, 8, 2), torch.ones(1, 8))], 0.1), start)


def test_massive_tokens_do_not_rule() -> None:
    stream = torch.ones(1, 5, 8)
    stream[0, 2] *= 1000
    weights = token_weights(stream)[0]
    assert weights[2] * 1000**2 == pytest.approx(float(weights[1]))


def twinned(family: str) -> tuple[Any, Any]:
    """A model whose second half of neurons fire exactly as the first: half of them can go without loss."""
    config, model = tiny(family)
    modules = adapter_for(config).modules
    for layer in range(adapter_for(config).shape(config).layers):
        for name in modules.mlp[:-1]:
            projection: Any = model.get_submodule(f"{modules.layer(layer)}.{name}")
            rows = projection.weight.data.t() if modules.conv1d else projection.weight.data
            half = len(rows) // 2
            rows[half:] = rows[:half]
            if projection.bias is not None:
                projection.bias.data[half:] = projection.bias.data[:half]
    return config, model


def cut(config: Any, original: Any, plan: Plan) -> Any:
    """The pruned model."""
    from transformers import AutoModelForCausalLM

    architecture = adapter_for(config)
    pruned = AutoModelForCausalLM.from_config(architecture.pruned_config(config, plan), dtype=torch.float32).eval()
    state = {}
    for name, tensor in original.state_dict().items():
        kept = prune_tensor(name, tensor, plan, architecture, config)
        if kept is not None:
            state[kept[0]] = kept[1].clone()
    pruned.load_state_dict(state)
    return pruned


def error(original: Any, pruned: Any) -> float:
    """Relative error of the last hidden states on windows that nothing was fitted on."""
    fresh = torch.randint(3, 300, (8, 48), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = last_hidden(original, fresh), last_hidden(pruned, fresh)
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize("family", ["llama", "llama-biases", "qwen2", "smollm3", "gpt2", "gpt_neox", "gpt_neox-serial"])
def test_what_can_be_made_up_for_is(family: str) -> None:
    config, original = twinned(family)
    shape = adapter_for(config).shape(config)
    half = tuple(range(shape.mlp // 2))
    plan = replace(Plan.full(shape), mlp=(half,) * shape.layers)
    pruned = cut(config, original, plan)
    before = error(original, pruned)
    compensate(pruned, original, plan, WINDOWS, Fit(ridge=1e-7), nothing)
    assert before > 0.1 and error(original, pruned) < 0.02 * before, (before, error(original, pruned))


def narrower(config: Any, stays: int, of: int) -> Plan:
    """The first channels stay, and with them as many heads where a family's width is that of its heads."""
    shape = adapter_for(config).shape(config)
    plan = replace(Plan.full(shape), hidden=tuple(range(stays * shape.hidden // of)))
    if not config.model_type.startswith("gpt"):
        return plan
    heads = (tuple(range(stays * shape.kv_heads // of)),) * shape.layers
    return replace(plan, heads=heads, query_heads=heads)


FAMILIES = ["llama", "llama-biases", "qwen2", "qwen3", "smollm3", "gpt2", "gpt_neox", "gpt_neox-serial"]


@pytest.mark.parametrize("family", FAMILIES)
def test_readers_find_the_original_s_stream_in_what_is_left_of_it(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what is left says all, their outputs become the original's: the least squares by numpy's own."""
    config, original = tiny(family)
    shape = adapter_for(config).shape(config)
    modules = adapter_for(config).modules
    half = tuple(range(shape.mlp // 2))
    plan = replace(narrower(config, 1, 2), mlp=(half,) * shape.layers, layers=(0, 2))
    plan = replace(plan, hidden=tuple(range(0, shape.hidden, 2)))
    pruned = cut(config, original, plan)
    monkeypatch.setattr("compress.prune.readers.ROWS", 24)  # a head is solved in parts
    readers = Readers(pruned, original, plan, ridge=1e-9)
    embedding = pruned.get_input_embeddings().weight.clone()
    torch.manual_seed(0)
    y = torch.randn(64, 48, shape.hidden // 2)
    z = y @ torch.randn(shape.hidden // 2, shape.hidden)
    rows = set()
    for norm in range(2):
        with torch.no_grad():
            readers.refit(1, norm, list(y.split(16)), list(z.split(16)))
        for name in readers.norms(2)[norm][1]:
            source: Any = original.get_submodule(f"{modules.layer(2)}.{name}")
            found: Any = pruned.get_submodule(f"{modules.layer(1)}.{name}")
            expected, told = source(z), found(y)
            if name in modules.mlp:
                expected = expected[..., : told.shape[-1]]  # the first half of the neurons stays
            elif told.shape != expected.shape:
                continue  # a third of a joint projection for each of queries, keys and values: below
            torch.testing.assert_close(told, expected, rtol=1e-3, atol=1e-3)
            rows.add(name)
    if not shape.tied:
        with torch.no_grad():
            readers.refit_head(list(y.split(16)), list(z.split(16)))
        expected, told = (model.get_output_embeddings()(x) for model, x in ((original, z), (pruned, y)))
        torch.testing.assert_close(told, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(pruned.get_input_embeddings().weight, embedding)
    assert rows >= {*modules.mlp} - {modules.mlp[-1]}
    if not family.startswith("gpt"):
        assert rows == {*modules.attention, *modules.mlp} - {modules.attention[-1], modules.mlp[-1]}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_channel_that_says_what_another_says_is_missed_less(family: str) -> None:
    config, original = tiny(family)
    shape = adapter_for(config).shape(config)
    with torch.no_grad():  # the last quarter of the channels is the first, in all that is written and in every norm
        for name, tensor in original.state_dict().items():
            for dim, axis in enumerate(adapter_for(config).axes(config, name) or ()):
                reads = dim == (0 if adapter_for(config).modules.conv1d else 1) and "norm" not in name
                if axis.kind == "hidden" and not (reads and "embed" not in name and "wte" not in name):
                    quarter = shape.hidden // 4
                    tensor.narrow(dim, 3 * quarter, quarter).copy_(tensor.narrow(dim, 0, quarter))
    plan = narrower(config, 3, 4)
    kept = torch.tensor(plan.hidden)
    errors = {}
    for ridge in (1e9, 1e-4):
        pruned = cut(config, original, plan)
        compensate(pruned, original, plan, WINDOWS, Fit(ridge=1e9, read_ridge=ridge), nothing)
        fresh = torch.randint(3, 300, (8, 48), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            a, b = last_hidden(original, fresh)[..., kept], last_hidden(pruned, fresh)
        errors[ridge] = float((a / a.norm() - b / b.norm()).norm())
    assert errors[1e-4] < 0.7 * errors[1e9], errors


@pytest.mark.parametrize("family", ["llama-biases", "gpt_neox"])
def test_layers_after_a_dropped_one_make_up_for_it(family: str) -> None:
    config, original = tiny(family)
    shape = adapter_for(config).shape(config)
    plan = replace(Plan.full(shape), layers=(0, 2, 3))
    pruned = cut(config, original, plan)
    before = error(original, pruned)
    compensate(pruned, original, plan, WINDOWS, Fit(), nothing)
    assert error(original, pruned) < 0.95 * before, (before, error(original, pruned))


def test_an_uncut_model_stays_what_it_is() -> None:
    config, original = tiny("llama")
    plan = Plan.full(adapter_for(config).shape(config))
    pruned = cut(config, original, plan)
    compensate(pruned, original, plan, WINDOWS, Fit(), nothing)
    assert error(original, pruned) < 1e-3
