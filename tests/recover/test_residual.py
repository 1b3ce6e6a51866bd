"""Closed-form adapters: what they must win, against an independent optimum."""

from __future__ import annotations

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
    a, b = low_rank(residual, 12, torch.rand(16) + 0.1)
    torch.testing.assert_close(b @ a, residual, rtol=1e-4, atol=1e-5)


def test_weighted_beats_plain_on_the_inputs_it_was_weighted_for() -> None:
    torch.manual_seed(0)
    rms = torch.logspace(-2, 1, 32)
    residual, inputs = torch.randn(24, 32), torch.randn(4000, 32) * rms
    errors = []
    for weights in (None, rms):
        a, b = low_rank(residual, 4, weights)
        errors.append(float((inputs @ (residual - b @ a).T).norm()))
    assert errors[1] < 0.7 * errors[0]


def test_input_never_seen_divides_by_nothing() -> None:
    rms = torch.ones(8)
    rms[3] = 0
    a, b = low_rank(torch.randn(8, 8), 2, rms)
    assert bool(a.isfinite().all()) and bool(b.isfinite().all())
