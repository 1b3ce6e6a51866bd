"""Sums of products of activations: in half the work, and without leaving the range of half precision."""

from __future__ import annotations

import torch

from compress.layerwise import Layers
from compress.moments import sum_of_products
from compress.quant.calibrated import _collect
from compress.quant.inputs import RoundedInputs
from compress.quant.solve import Calibration
from tests.models import tiny
from tests.quant.problems import energy, gram_of

WINDOWS = torch.randint(3, 320, (12, 32), generator=torch.Generator().manual_seed(0))


def test_half_precision_does_not_overflow_in_the_sums() -> None:
    x = torch.full((4, 256, 8), 9.0, dtype=torch.float16)
    torch.testing.assert_close(sum_of_products([x], [x], 1.0), torch.full((8, 8), 81.0), rtol=1e-2, atol=0)


def test_second_moments_are_added_up_from_their_upper_halves() -> None:
    x = [torch.randn(3, 40, 600, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    found = sum_of_products(x, x, 1.0)
    rows = torch.cat(x).flatten(0, 1)
    torch.testing.assert_close(found, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-4)
    assert torch.equal(found, found.T)


def test_two_models_may_compute_in_two_types() -> None:
    x, y = (torch.randn(2, 40, width, generator=torch.Generator().manual_seed(width)) for width in (24, 16))
    found = sum_of_products([x.bfloat16()], [y])
    torch.testing.assert_close(found, sum_of_products([x], [y]), rtol=0.05, atol=0.02)


def test_first_tokens_can_count_more() -> None:
    """Weighted second moments: ten times the first token is ten copies of it."""
    _, model = tiny("llama")
    with torch.no_grad():
        layers = Layers.of(model, WINDOWS)
        path = "model.layers.0.self_attn.q_proj"
        norm = model.get_submodule("model.layers.0.input_layernorm")
        y = norm(layers.embedded)
        found = _collect(layers, 0, layers.embedded, [path], [y], RoundedInputs(), Calibration(first_token=10.0))
    rows = torch.cat([y.flatten(0, 1), *9 * [y[:, 0]]])
    torch.testing.assert_close(found.h, gram_of(rows), rtol=1e-4, atol=1e-5)
    assert not bool(found.lost.any())
    assert energy(torch.eye(64), found.h) > 0
