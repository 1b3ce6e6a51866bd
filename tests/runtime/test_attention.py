"""Attention as products equals torch's, for every way heads share keys and any length."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from compress.layerwise import Layers
from compress.runtime.attention import causal_products
from tests.models import tiny


@pytest.mark.parametrize("length", [1, 5, 128, 129, 300])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_equals_torch(length: int, groups: int) -> None:
    generator = torch.Generator().manual_seed(length)
    q = torch.randn(2, 6, length, 16, generator=generator)
    k, v = (torch.randn(2, groups, length, 16, generator=generator) for _ in range(2))
    whole = (x.repeat_interleave(6 // groups, 1) for x in (k, v))
    expected = scaled_dot_product_attention(q, *whole, is_causal=True, scale=0.3)
    torch.testing.assert_close(causal_products(q, k, v, 0.3), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "mistral"])
@torch.no_grad()
def test_a_layer_gives_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.runtime import attention

    _, model = tiny(name)
    model = model.to(torch.bfloat16)
    windows = torch.randint(3, 320, (2, 96), generator=torch.Generator().manual_seed(0))
    layers = Layers.of(model, windows)
    plain = layers.run(1, layers.embedded).float()
    calls = []
    monkeypatch.setattr(attention, "SHORTEST", 32)
    monkeypatch.setattr(attention, "causal_products", lambda *a: calls.append(1) or causal_products(*a))
    fast = layers.run(1, layers.embedded).float()
    # a window of attention goes to torch as before
    assert bool(calls) == (name != "mistral")
    assert (fast - plain).norm() < 1e-2 * plain.norm()
    assert model.config._attn_implementation == "sdpa"
