"""The loss from few numbers per teacher token: against plain formulas, whole targets, and in expectation."""

from __future__ import annotations

import sys

import compress_kernels as ck
import pytest
import torch
import torch.nn.functional as F
from compress_kernels import chunks, reference
from torch import Tensor

VOCAB, TOKENS, WIDTH = 61, 9, 16
TERMS = [
    (1.0, ck.Divergences(), 0.0),
    (2.0, ck.Divergences(0.7), 0.3),
    (1.5, ck.Divergences(0.3, 0.4, 0.5, 0.6, 0.7, beta=0.8, alpha=0.3), 0.2),
]


def sample(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden, head, teacher = (torch.randn(n, WIDTH, generator=generator) for n in (TOKENS, VOCAB, TOKENS))
    labels = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
    labels[3] = -100
    teacher = hidden + 0.5 * teacher
    return hidden.to(dtype).requires_grad_(), (head * 0.7).to(dtype).requires_grad_(), teacher.to(dtype), labels


def gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize(("temperature", "terms", "ce"), TERMS)
@pytest.mark.parametrize("k", [1, 5, VOCAB - 1])
def test_top_k_is_the_divergence_over_k_outcomes_and_the_tail(
    k: int, temperature: float, terms: ck.Divergences, ce: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and gradients against autograd in fp64 on the coarse distributions."""
    monkeypatch.setattr(sys.modules["compress_kernels.sparse_kl"], "SLICE", 2 * VOCAB)
    monkeypatch.setattr(chunks, "WORKSPACE", 4 * VOCAB * 4)
    hidden, head, teacher, labels = sample()
    kept = ck.sparse_targets(teacher, head, k, temperature)
    found = ck.sparse_kl(hidden, head, kept, labels=labels, temperature=temperature, terms=terms, ce=ce)

    valid = labels >= 0
    s = (hidden.double() @ head.double().t())[valid]
    q = (s / temperature).softmax(1)
    p = (teacher.double() @ head.detach().double().t())[valid].div(temperature).softmax(1)
    ids = p.topk(k, dim=1).indices
    assert torch.equal(ids, kept.ids[valid])

    def coarse(x: Tensor) -> Tensor:
        own = x.gather(1, ids)
        return torch.cat([own, x.scatter(1, ids, 0.0).sum(1, keepdim=True)], 1).log()

    expected = temperature**2 * reference.weighted_divergence(coarse(p), coarse(q), terms).mean()
    expected = expected + ce * F.cross_entropy(s, labels[valid])
    torch.testing.assert_close(found.total.double(), expected, rtol=1e-4, atol=1e-6)
    for actual, wanted in zip(gradients(found.total, hidden, head), gradients(expected, hidden, head), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-5)
    if ce:
        torch.testing.assert_close(found.ce.double(), F.cross_entropy(s, labels[valid]), rtol=1e-5, atol=0)


def test_the_tail_never_shows_more_than_the_whole() -> None:
    """Coarser outcomes: at most the whole divergence, equal to it once every token is an outcome."""
    hidden, head, teacher, _ = sample()
    whole = float(ck.fused_kl(hidden, head, teacher, head).total.detach())
    parts = [
        float(ck.sparse_kl(hidden, head, ck.sparse_targets(teacher, head, k)).total) for k in (1, 4, 16, VOCAB - 1)
    ]
    assert parts == sorted(parts) and parts[0] < whole
    assert parts[-1] == pytest.approx(whole, rel=1e-4)


def test_draws_are_unbiased_in_value_and_gradient() -> None:
    """The mean over many stores comes to the whole KL and its gradient, as the number of stores says it should."""
    hidden, head, teacher, _ = sample()
    exact = ck.fused_kl(hidden, head, teacher, head).total
    wanted = gradients(exact, hidden)[0]
    generator = torch.Generator().manual_seed(0)
    values, found = [], []
    for _ in range(400):
        loss = ck.sparse_kl(hidden, head, ck.sparse_targets(teacher, head, 4, generator=generator)).total
        values.append(float(loss.detach()))
        found.append(gradients(loss, hidden)[0])
    error = torch.tensor(values).std() / 400**0.5
    assert abs(torch.tensor(values).mean() - exact) < 4 * error
    stacked = torch.stack(found)
    assert bool(((stacked.mean(0) - wanted).abs() < 5 * stacked.std(0) / 400**0.5 + 1e-6).all())


def test_draws_are_even() -> None:
    """A token of probability p is drawn floor(k p) or ceil(k p) times."""
    _, head, teacher, _ = sample()
    p = (teacher @ head.t()).softmax(1).detach()
    kept = ck.sparse_targets(teacher, head, 20, generator=torch.Generator().manual_seed(0))
    counts = torch.zeros_like(p).scatter_add_(1, kept.ids, torch.ones_like(kept.ids, dtype=p.dtype))
    assert bool(((counts - 20 * p).abs() < 1 + 1e-4).all())
    entropy = -(p * p.log()).sum(1)
    torch.testing.assert_close(kept.entropy, entropy, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("temperature", "ce"), [(1.0, 0.0), (2.0, 0.5)])
def test_draws_give_the_cross_entropy_with_their_counts(temperature: float, ce: float) -> None:
    hidden, head, teacher, labels = sample()
    kept = ck.sparse_targets(teacher, head, 6, temperature, torch.Generator().manual_seed(0))
    terms = ck.Divergences(0.8)
    found = ck.sparse_kl(hidden, head, kept, labels=labels, temperature=temperature, terms=terms, ce=ce)
    valid = labels >= 0
    s = (hidden.double() @ head.double().t())[valid]
    log_q = (s / temperature).log_softmax(1)
    assert kept.entropy is not None
    kl = (-log_q.gather(1, kept.ids[valid]).mean(1) - kept.entropy[valid]).mean()
    expected = 0.8 * temperature**2 * kl + ce * F.cross_entropy(s, labels[valid])
    torch.testing.assert_close(found.total.double(), expected, rtol=1e-4, atol=1e-5)
    for actual, wanted in zip(gradients(found.total, hidden, head), gradients(expected, hidden, head), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-5)


def test_no_teacher_leaves_the_cross_entropy() -> None:
    hidden, head, _, labels = sample()
    nothing = ck.SparseTargets(torch.zeros(TOKENS, 0, dtype=torch.int64), log_mass=torch.zeros(TOKENS, 1))
    found = ck.sparse_kl(hidden, head, nothing, labels=labels, terms=ck.Divergences(0), ce=1.0)
    expected = F.cross_entropy(hidden @ head.t(), labels)
    torch.testing.assert_close(found.total, expected)
    torch.testing.assert_close(gradients(found.total, hidden)[0], gradients(expected, hidden)[0], rtol=1e-4, atol=1e-6)


def test_bf16_is_as_close_as_whole_targets() -> None:
    hidden, head, teacher, _ = sample(torch.bfloat16)
    found = ck.sparse_kl(hidden, head, ck.sparse_targets(teacher, head.detach(), VOCAB - 1))
    whole = ck.fused_kl(hidden, head, teacher, head)
    torch.testing.assert_close(found.total, whole.total, rtol=1e-2, atol=1e-4)
    for actual, wanted in zip(gradients(found.total, hidden, head), gradients(whole.total, hidden, head), strict=True):
        assert float((actual - wanted).float().norm() / wanted.float().norm()) < 0.02


def test_mistakes_are_explained() -> None:
    hidden, head, teacher, _ = sample()
    with pytest.raises(ValueError, match="k is 61"):
        ck.sparse_targets(teacher, head, VOCAB)
    drawn = ck.sparse_targets(teacher, head, 3, generator=torch.Generator())
    with pytest.raises(ValueError, match="forward KL only"):
        ck.sparse_kl(hidden, head, drawn, terms=ck.Divergences(1, 1))
    with pytest.raises(ValueError, match="one row per token"):
        ck.sparse_kl(hidden[:2], head, drawn)
