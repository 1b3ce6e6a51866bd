"""Walking a model layer by layer gives what the model itself computes."""

from __future__ import annotations

import pytest
import torch

from compress.arch import adapter_for
from compress.layerwise import EnoughSeen, Layers, batches, inputs_of, watching
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
