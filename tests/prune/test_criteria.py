"""Every criterion on whole models against a reference that takes another way."""

from __future__ import annotations

from dataclasses import replace
from math import pi
from typing import Any

import pytest
import torch

from compress.arch import adapter_for
from compress.calibrate import SINK_TOKENS
from compress.prune.criteria import Importance, LayerImportance
from compress.prune.plan import Plan, Scores
from compress.prune.scoring import Criteria, score
from compress.stage import Quiet
from tests.models import tiny
from tests.prune.masked import masked

WINDOWS = torch.randint(3, 300, (6, 20), generator=torch.Generator().manual_seed(0))
FAMILIES = ["llama", "qwen3", "smollm3", "gpt2", "gpt_neox"]


def scores(model: Any, groups: str, layers: str = "block_influence", remove: int = 1) -> Scores:
    architecture = adapter_for(model.config)
    widths = architecture.shape(model.config).widths
    criteria = Criteria(Importance(groups), LayerImportance(layers), removal_tokens=WINDOWS.numel())
    asked = replace(widths, layers=widths.layers - remove)
    return score(model, architecture, WINDOWS, asked, criteria, Quiet()).scores


def gated_gradients(model: Any) -> dict[str, torch.Tensor]:
    """dL/dm of a factor on every neuron, query head and residual channel at every token: [windows, tokens, ...]."""
    config = model.config
    modules, shape = adapter_for(config).modules, adapter_for(config).shape(config)
    tokens = WINDOWS.shape[1]
    gates = {
        "mlp": torch.ones(tokens, shape.layers, shape.mlp, requires_grad=True),
        "query_heads": torch.ones(tokens, shape.layers, shape.heads, requires_grad=True),
        "hidden": torch.ones(tokens, shape.hidden, requires_grad=True),
    }
    hooks = []
    for layer in range(shape.layers):
        neurons, heads = (model.get_submodule(path(layer)) for path in (modules.neurons, modules.head_outputs))
        hooks.append(neurons.register_forward_pre_hook(lambda _m, x, i=layer: (x[0] * gates["mlp"][:, i],)))
        hooks.append(
            heads.register_forward_pre_hook(
                lambda _m, x, i=layer: (x[0] * gates["query_heads"][:, i].repeat_interleave(shape.head_dim, -1),)
            )
        )
    for path in [modules.final_norm, *(p for layer in range(shape.layers) for p in modules.norms(layer))]:
        hooks.append(model.get_submodule(path).register_forward_hook(lambda _m, _x, out: out * gates["hidden"]))
    rows: dict[str, list[torch.Tensor]] = {kind: [] for kind in gates}
    for window in WINDOWS:
        loss = model(window[None], labels=window[None], use_cache=False).loss
        for kind, gradient in zip(gates, torch.autograd.grad(loss, list(gates.values())), strict=True):
            rows[kind].append(gradient)
    for hook in hooks:
        hook.remove()
    return {kind: torch.stack(found) for kind, found in rows.items()}


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
@pytest.mark.parametrize("family", FAMILIES)
def test_taylor_and_fisher_are_gradients_of_gates(family: str, criterion: str) -> None:
    """Of one gate for all tokens of a window, and of one for every token."""
    config, model = tiny(family)
    shape = adapter_for(config).shape(config)
    gradients = gated_gradients(model)
    queries = gradients["query_heads"]
    gradients["heads"] = queries.unflatten(-1, (shape.kv_heads, -1)).sum(-1)
    found = scores(model, criterion)
    for kind, each in gradients.items():
        samples = each.flatten(0, 1) if criterion == "fisher" else each.sum(1)
        torch.testing.assert_close(getattr(found, kind), samples.square().mean(0).sqrt(), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("layers", ["block_influence", "angular"])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_scored_on_the_pass_of_the_gates(family: str, layers: str) -> None:
    _, model = tiny(family)
    alone, along = scores(model, "magnitude", layers, 2), scores(model, "fisher", layers, 2)
    torch.testing.assert_close(along.layers, alone.layers, rtol=1e-4, atol=1e-5)


def inputs_and_outputs(model: Any, path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one module, all windows at once, without the first positions."""
    seen = []
    hook = model.get_submodule(path).register_forward_hook(lambda _m, x, out: seen.append((x[0], out)))
    with torch.no_grad():
        model(WINDOWS, use_cache=False)
    hook.remove()
    before, after = seen[0]
    return before[:, SINK_TOKENS:], (after[0] if isinstance(after, tuple) else after)[:, SINK_TOKENS:]


@pytest.mark.parametrize("family", FAMILIES)
def test_activation_and_wanda(family: str) -> None:
    config, model = tiny(family)
    modules, shape = adapter_for(config).modules, adapter_for(config).shape(config)
    activation, wanda = scores(model, "activation"), scores(model, "wanda")
    path = modules.neurons(1)
    x, _ = inputs_and_outputs(model, path)
    weight = model.get_submodule(path).weight.detach()
    weight = weight.t() if modules.conv1d else weight
    torch.testing.assert_close(activation.mlp[1], x.abs().mean(1).norm(dim=0))
    torch.testing.assert_close(wanda.mlp[1], (weight.abs() * x.flatten(0, 1).norm(dim=0)).norm(dim=0))
    path = modules.head_outputs(2)
    x, _ = inputs_and_outputs(model, path)
    weight = model.get_submodule(path).weight.detach()
    weight = weight.t() if modules.conv1d else weight
    elements = weight.abs() * x.flatten(0, 1).norm(dim=0)
    by_head = elements.view(shape.hidden, shape.kv_heads, -1).permute(1, 0, 2).flatten(1).norm(dim=1)
    torch.testing.assert_close(wanda.heads[2], by_head)
    torch.testing.assert_close(activation.query_heads[2].view(shape.kv_heads, -1).norm(dim=1), activation.heads[2])
    total = torch.zeros(shape.hidden)
    for layer in range(shape.layers):
        for fold in modules.folds:
            if fold.source in modules.residual_norms:
                _, z = inputs_and_outputs(model, f"{modules.layer(layer)}.{fold.source}")
                for target in fold.targets:
                    weight = model.get_submodule(f"{modules.layer(layer)}.{target}").weight.detach()
                    weight = weight.t() if modules.conv1d else weight
                    total += (weight.abs() * z.flatten(0, 1).norm(dim=0)).square().sum(0)
    torch.testing.assert_close(wanda.hidden, total.sqrt())


@pytest.mark.parametrize("family", FAMILIES)
def test_magnitude_is_what_the_smaller_model_lacks(family: str) -> None:
    """Squares of all weights before a group goes, minus those after."""
    from compress.prune.surgery import prune_tensor

    config, model = tiny(family)
    architecture, full = adapter_for(config), Plan.full(adapter_for(config).shape(config))
    shape = architecture.shape(config)

    def energy(plan: Plan) -> float:
        total = 0.0
        for name, parameter in model.named_parameters():
            kept = prune_tensor(name, parameter.detach(), plan, architecture, config)
            assert kept is not None
            total += float(kept[1].double().square().sum())
        return total

    found = scores(model, "magnitude")
    rest = tuple(range(1, shape.mlp))
    mlp = (tuple(range(shape.mlp - 1)), *(rest for _ in range(shape.layers - 1)))
    lost = energy(full) - energy(replace(full, mlp=mlp))
    expected = found.mlp[0, -1].square() + found.mlp[1:, 0].square().sum()
    assert lost == pytest.approx(float(expected), rel=1e-4)
    without = replace(full, hidden=tuple(range(1, shape.hidden)))
    assert energy(full) - energy(without) == pytest.approx(float(found.hidden[0].square()), rel=1e-4)
    groups, queries = tuple(range(1, shape.kv_heads)), tuple(range(shape.queries, shape.heads))
    without = replace(full, heads=(groups,) * shape.layers, query_heads=(queries,) * shape.layers)
    assert energy(full) - energy(without) == pytest.approx(float(found.heads[:, 0].square().sum()), rel=1e-4)
    if shape.queries > 1:
        kept = tuple(head for head in range(shape.heads) if head % shape.queries)
        lost = energy(full) - energy(replace(full, query_heads=(kept,) * shape.layers))
        gone = found.query_heads.view(shape.layers, shape.kv_heads, -1)[..., 0]
        assert lost == pytest.approx(float(gone.square().sum()), rel=1e-4)


def test_random_needs_no_text_and_has_a_seed() -> None:
    _, model = tiny("llama")
    architecture = adapter_for(model.config)
    widths = architecture.shape(model.config).widths

    def drawn(seed: int) -> Scores:
        criteria = Criteria(Importance.random, LayerImportance.random, seed=seed)
        return score(model, architecture, WINDOWS[:0], widths, criteria, Quiet()).scores

    for kind in ("layers", "mlp", "heads", "query_heads", "hidden"):
        assert torch.equal(getattr(drawn(3), kind), getattr(drawn(3), kind))
        assert not torch.equal(getattr(drawn(3), kind), getattr(drawn(4), kind))


@pytest.mark.parametrize("family", FAMILIES)
def test_block_influence_and_angular_distance(family: str) -> None:
    config, model = tiny(family)
    modules = adapter_for(config).modules
    layers = adapter_for(config).shape(config).layers
    streams = [inputs_and_outputs(model, modules.layer(layer)) for layer in range(layers)]

    def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))

    influence = torch.stack([1 - cosine(before, after).mean() for before, after in streams])
    torch.testing.assert_close(scores(model, "activation").layers, influence, rtol=1e-4, atol=1e-5)
    for block in (1, 2, 3):
        ends = [(streams[start][0], streams[start + block - 1][1]) for start in range(layers - block + 1)]
        distances = [float(cosine(*pair).arccos().mean() / pi) for pair in ends]
        start = distances.index(min(distances))
        found = scores(model, "random", "angular", remove=block).layers
        assert found.tolist() == [0.0 if start <= layer < start + block else 1.0 for layer in range(layers)]


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "smollm3", "gpt2"])
def test_perplexity_removes_greedily(family: str) -> None:
    config, model = tiny(family)
    full = Plan.full(adapter_for(config).shape(config))
    left, gone = list(full.layers), []
    for _ in range(2):
        losses = {}
        for layer in left:
            kept = tuple(other for other in left if other != layer)
            cut = masked(model, replace(full, layers=kept))
            losses[layer] = float(cut(WINDOWS, labels=WINDOWS, use_cache=False).loss)
        gone.append(min(losses, key=losses.__getitem__))
        left.remove(gone[-1])
    found = scores(model, "random", "perplexity", remove=2).layers
    assert found.sort(stable=True).indices[:2].tolist() == gone
    assert all(found[layer] == 2 for layer in left)


def test_one_pass_serves_all_that_can_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from compress import calibrate

    _, model = tiny("llama")
    passes = []
    plain = calibrate.last_hidden
    monkeypatch.setattr(calibrate, "last_hidden", lambda *a: passes.append(1) or plain(*a))
    scores(model, "wanda", "angular", remove=2)
    assert len(passes) == len(WINDOWS)
