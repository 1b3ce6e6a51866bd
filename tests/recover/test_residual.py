"""Closed-form adapters: what they must win, against an independent optimum."""

from __future__ import annotations

import pytest
import torch

from compress.recover.residual import low_rank


def test_is_the_truncated_svd() -> None:
    torch.manual_seed(0)
    residual = torch.randn(20, 30)
    a, b = low_rank(residual, 5)
    s = torch.linalg.svdvals(residual)
    assert a.shape == (5, 30) and b.shape == (20, 5)
    torch.testing.assert_close((residual - b @ a).norm() ** 2, (s[5:] ** 2).sum())


def test_full_rank_gives_all_back() -> None:
    torch.manual_seed(0)
    residual = torch.randn(12, 16)
    a, b = low_rank(residual, 12, torch.diag(torch.rand(16) + 0.1))
    torch.testing.assert_close(b @ a, residual, rtol=1e-4, atol=1e-5)


def test_weighted_is_the_optimum_for_its_inputs() -> None:
    """Against an independent optimum: SVD of the outputs' error itself."""
    torch.manual_seed(0)
    mixing = torch.randn(32, 32) * torch.logspace(-2, 1, 32)[:, None]
    residual, inputs = torch.randn(24, 32), torch.randn(4000, 32) @ mixing
    gram = inputs.T @ inputs / len(inputs)
    errors = {}
    for name, weights in (("plain", None), ("weighted", gram)):
        a, b = low_rank(residual, 4, weights)
        errors[name] = float((inputs @ (residual - b @ a).T).norm())
    best = float(torch.linalg.svdvals(inputs @ residual.T)[4:].norm())
    assert errors["weighted"] < 1.02 * best < 0.9 * errors["plain"]


def test_input_never_seen_divides_by_nothing() -> None:
    gram = torch.eye(8)
    gram[3] = 0
    a, b = low_rank(torch.randn(8, 8), 2, gram)
    assert bool(a.isfinite().all()) and bool(b.isfinite().all())


@pytest.mark.parametrize("seed", range(6))
def test_a_residual_of_lower_rank_gives_no_long_directions(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    e = torch.randn(64, 2, generator=generator) @ torch.randn(2, 32, generator=generator)
    a, b = low_rank(e, 16)
    assert (e - b @ a).norm() < 1e-3 * e.norm()
    assert torch.equal(low_rank(torch.zeros(64, 32), 16)[1], torch.zeros(64, 16))


def test_rank_beyond_the_matrix_is_zero() -> None:
    residual = torch.randn(4, 6)
    a, b = low_rank(residual, 9)
    assert a.shape == (9, 6) and b.shape == (4, 9)
    torch.testing.assert_close(b @ a, residual, rtol=1e-4, atol=1e-5)
