"""Folding moves scales between layers and changes nothing else."""

from __future__ import annotations

import pytest
import torch

from compress.arch import adapter_for
from compress.folds import best_scale, edges
from compress.grids import grid_named
from tests.models import FAMILIES, tiny

WITH_BIASES = [*FAMILIES, "llama-biases", "llama-no_gqa", "llama-head_dim", "qwen3-biases", "smollm3-untied"]


def edges_of(model, layer: int):
    architecture = adapter_for(model.config)
    modules = architecture.modules
    return edges(model, modules.layer(layer), modules.folds, architecture.shape(model.config), modules.conv1d)


@pytest.mark.parametrize("name", WITH_BIASES)
def test_any_scale_leaves_the_logits_as_they_are(name: str) -> None:
    """Every edge by itself, so that two mistakes cannot undo each other."""
    _, model = tiny(name)
    ids = torch.arange(7, 47)[None]
    found = edges_of(model, 1)
    assert len(found) == len(adapter_for(model.config).modules.folds) >= 2
    with torch.no_grad():
        before = model(ids).logits
        for index, (path, edge) in enumerate(found):
            generator = torch.Generator().manual_seed(index)
            channels = len(edge.shared(torch.ones(targets_inputs(edge))))
            weights = [t.weight.clone() for t in edge.targets]
            edge.apply((torch.randn(channels, generator=generator)).exp())
            assert all(not torch.equal(w, t.weight) for w, t in zip(weights, edge.targets, strict=True))
            torch.testing.assert_close(model(ids).logits, before, rtol=1e-3, atol=1e-3, msg=path)


def targets_inputs(edge) -> int:
    return edge.targets[0].weight.shape[0 if edge.conv1d else 1]


def readers_of(model, source) -> set:
    """Modules with a matrix that are called with the very tensor that `source` puts out."""
    outputs: list[torch.Tensor] = []
    readers = set()

    def look(module, args) -> None:
        if any(args[0] is output for output in outputs):
            readers.add(module)

    hooks = [source.register_forward_hook(lambda _, __, out: outputs.append(out))]
    hooks += [
        module.register_forward_pre_hook(look)
        for module in model.modules()
        if getattr(module, "weight", None) is not None and module.weight.dim() == 2
    ]
    with torch.no_grad():
        model(torch.arange(5, 25)[None])
    for hook in hooks:
        hook.remove()
    return readers


@pytest.mark.parametrize("name", FAMILIES)
def test_all_readers_of_a_norm_are_targets(name: str) -> None:
    """A linear layer that reads the norm but is not scaled would compute something else."""
    _, model = tiny(name)
    norms = [edge for _, edge in edges_of(model, 0) if edge.source.weight.dim() == 1]
    assert len(norms) == 2
    for edge in norms:
        assert readers_of(model, edge.source) == set(edge.targets)


def outlier_problem():
    """Inputs with one loud channel, targets whose weights there are small."""
    _, model = tiny("llama")
    _, edge = next(e for e in edges_of(model, 0) if e[1].source.weight.dim() == 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 64, generator=generator)
    x[:, 9] *= 60
    return edge, x


@pytest.mark.parametrize("smooth", [False, True])
def test_best_scale_lowers_the_error_it_is_searched_for(smooth: bool) -> None:
    from compress.grids import level_of, value_of
    from compress.grids.int8 import fake_quantize

    edge, x = outlier_problem()
    name = "int8" if smooth else "int4_g64"
    grids = {i: grid_named(name) for i in range(len(edge.targets))}
    scale = best_scale(edge, x, grids, smooth, int8_inputs=smooth)

    def error(s: torch.Tensor) -> float:
        total = 0.0
        for i, target in enumerate(edge.targets):
            w = target.weight * s
            scales = grids[i].start(w)
            seen = fake_quantize(x / s) if smooth else x / s
            total += float((seen @ value_of(level_of(w, scales, grids[i]), scales).t() - x @ target.weight.t()).norm())
        return total

    with torch.no_grad():
        assert error(scale) < 0.8 * error(torch.ones(64))
    assert scale[9] == scale.max()


def test_a_few_massive_tokens_do_not_choose_the_scale_of_all_others() -> None:
    """Two tokens are massive in a channel that is silent elsewhere; another channel is loud in every other token."""
    edge, x = outlier_problem()
    x[:2] *= 0.01
    x[:2, 5] = 2000
    grids = {i: grid_named("int8") for i in range(len(edge.targets))}
    scale = best_scale(edge, x, grids, smooth=True, int8_inputs=True)
    assert scale[9] == scale.max() and scale[5] < 1.5 * scale.median()


def test_heads_of_a_group_share_a_scale() -> None:
    _, model = tiny("llama")
    edge = next(e for _, e in edges_of(model, 0) if e.heads is not None)
    wanted = torch.rand(64, generator=torch.Generator().manual_seed(0)) + 0.5
    shared = edge.shared(wanted)
    assert shared.shape == (32,)  # 2 KV heads of 16
    spread = edge.spread(shared)
    # query heads 0 and 1 read KV head 0
    assert torch.equal(spread[:16], spread[16:32]) and torch.equal(spread[32:48], spread[48:])
    torch.testing.assert_close(shared[:16], (wanted[:16] * wanted[16:32]).sqrt())
    torch.testing.assert_close(edge.shared(edge.spread(shared)), shared)


def test_dead_and_loud_channels_give_finite_scales() -> None:
    edge, x = outlier_problem()
    x[:, 3] = 0
    x[:, 4] = 1e4
    for name, smooth in (("int4_g64", True), ("int4_g64", False), ("int8", True)):
        grids = {i: grid_named(name) for i in range(len(edge.targets))}
        for inputs in (x, torch.zeros_like(x), x[:1]):
            scale = best_scale(edge, inputs, grids, smooth, smooth)
            assert bool((scale > 0).all()) and bool(scale.isfinite().all())
