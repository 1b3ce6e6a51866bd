"""Properties of the INT8 grid, and its straight-through gradient."""

from __future__ import annotations

import torch

from compress.grids import Int8
from compress.grids.int8 import fake_quantize, quantize_tokens


def weight(rows: int = 24, columns: int = 40) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, rows)[:, None]


def test_round_trip_within_half_a_step() -> None:
    w, grid = weight(), Int8()
    step = w.abs().amax(1, keepdim=True) / 127
    assert bool(((grid.decode(grid.encode(w)) - w).abs() <= step / 2 * (1 + 1e-5)).all())


def test_encoding_again_changes_nothing() -> None:
    grid = Int8()
    once = grid.encode(weight())
    again = grid.encode(grid.decode(once))
    assert torch.equal(once.parts["codes"], again.parts["codes"])


def test_zero_row_stays_zero() -> None:
    w = weight()
    w[3] = 0
    decoded = Int8().decode(Int8().encode(w))
    assert torch.equal(decoded[3], torch.zeros(40)) and bool(decoded.isfinite().all())


def test_tokens_are_rows() -> None:
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    codes, absmax = quantize_tokens(x)
    assert codes.dtype == torch.int8 and absmax.shape == (2, 5, 1)
    assert torch.equal(codes.abs().amax(-1), torch.full((2, 5), 127, dtype=torch.int8))


def test_fake_quantization_is_what_the_grid_stores() -> None:
    w = weight()
    assert torch.allclose(fake_quantize(w), Int8().decode(Int8().encode(w)), rtol=1e-6)


def test_gradient_passes_straight_through() -> None:
    w = weight().requires_grad_(True)
    target = torch.randn_like(w)
    (fake_quantize(w) * target).sum().backward()
    assert w.grad is not None and torch.equal(w.grad, target)
