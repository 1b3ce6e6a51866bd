"""Walking a model layer by layer gives what the model itself computes."""

from __future__ import annotations

import pytest
import torch

from compress.arch import adapter_for
from compress.layerwise import EnoughSeen, Layers, already_known, batches, inputs_of, watching
from compress.train.module import last_hidden
from tests.models import VARIANTS, tiny


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_layers_one_by_one_are_the_model(name: str) -> None:
    """Sliding windows, layers without rotary positions and the parallel residual among them; batches of other sizes."""
    _, model = tiny(name)
    windows = torch.randint(3, 320, (5, 24), generator=torch.Generator().manual_seed(0))
    layers = Layers.of(model, windows)
    assert len(layers.calls) == 4 and layers.embedded.shape == (5, 24, 64)
    x = layers.embedded
    for index in range(4):
        x = torch.cat([layers.run(index, part) for part in torch.split(x, 2)])
    norm = model.get_submodule(adapter_for(model.config).modules.final_norm)
    torch.testing.assert_close(norm(x), last_hidden(model, windows), rtol=1e-4, atol=1e-4)
    # nothing is left behind
    assert not any(module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
def test_inputs_end_the_layer_and_watching_does_not() -> None:
    _, model = tiny("llama")
    layers = Layers.of(model, torch.arange(3, 27)[None])
    down = model.get_submodule("model.layers.0.mlp.down_proj")
    with watching(down) as calls:
        after = layers.run(0, layers.embedded)
    with inputs_of(down) as seen, pytest.raises(EnoughSeen):
        layers.run(0, layers.embedded)
    assert torch.equal(seen[0], calls[0][0])
    torch.testing.assert_close(down(seen[0]), calls[0][1])
    assert torch.equal(layers.run(0, layers.embedded), after)
    assert not down._forward_pre_hooks and not down._forward_hooks


@pytest.mark.parametrize(("shape", "expected"), [((5, 512), [2, 2, 1]), ((3, 4096), [1, 1, 1]), ((4, 8), [4])])
def test_batches_have_about_a_thousand_tokens(shape: tuple[int, int], expected: list[int]) -> None:
    assert [len(part) for part in batches(torch.zeros(*shape, 2))] == expected


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_a_block_whose_inputs_are_known_is_not_computed_again(name: str) -> None:
    """The layer gives the same, pass after pass, with attention, with MLP, and with both taken as known."""
    config, model = tiny(name)
    modules = adapter_for(config).modules
    layers = Layers.of(model, torch.randint(3, 320, (5, 24), generator=torch.Generator().manual_seed(0)))
    heads, neurons = modules.head_outputs(1), modules.neurons(1)
    parts = torch.split(layers.embedded, 2)
    with watching(model.get_submodule(heads)) as of_heads, watching(model.get_submodule(neurons)) as of_neurons:
        expected = [layers.run(1, part) for part in parts]
    first = model.get_submodule(modules.linears(1)[0])
    with already_known(model, heads, [x for x, _ in of_heads], attention=True), watching(first) as computed:
        for _ in range(2):
            for part, out in zip(parts, expected, strict=True):
                torch.testing.assert_close(layers.run(1, part), out)
        assert not computed, "the attention was computed"
        with already_known(model, neurons, [x for x, _ in of_neurons], attention=False):
            for part, out in zip(parts, expected, strict=True):
                torch.testing.assert_close(layers.run(1, part), out)
    assert "forward" not in vars(model.get_submodule(heads.rpartition(".")[0]))
    torch.testing.assert_close(layers.run(1, parts[0]), expected[0])
