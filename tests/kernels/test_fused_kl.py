"""The fused distillation loss: value and gradient against plain torch in float64, memory, and what must not leak."""

from __future__ import annotations

import compress_kernels as ck
import pytest
import torch
import torch.nn.functional as F
from compress_kernels import chunks, reference
from torch import Tensor

from tests.kernels.losses import Case, distance

KL = ck.Divergences()
TERMS = [
    (1.0, KL, 0.0),
    (2.0, KL, 0.0),
    (0.5, KL.scaled(0.7), 0.3),
    (1.0, KL.scaled(0.5), 0.5),
    (3.0, KL.scaled(0), 1.0),
]
OTHERS = [
    (1.0, ck.Divergences(0, 1), 0.0),
    (2.0, ck.Divergences(0, 0.5), 0.3),
    (1.0, ck.Divergences(0, 0, 1), 0.0),
    (0.5, ck.Divergences(0, 0, 1, beta=0.1), 0.5),
    (1.0, ck.Divergences(0, 0, 0, 1), 0.0),
    (2.0, ck.Divergences(0, 0, 0, 1, alpha=0.4), 0.5),
    (1.0, ck.Divergences(0, 0, 0, 0, 1), 0.0),
    (3.0, ck.Divergences(0, 0, 0, 0, 1, alpha=0.7), 0.2),
    (1.5, ck.Divergences(0.3, 0.4, 0.5, 0.6, 0.7, beta=0.8, alpha=0.3), 0.9),
]


def test_the_reference_is_the_textbook_loss() -> None:
    """reference.kl_loss against F.kl_div, F.cross_entropy and the definition, in float64."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(7, 11, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    labels = torch.randint(0, 11, (7,), generator=generator)
    p, q = F.softmax(teacher / 2, dim=1), F.softmax(student / 2, dim=1)
    by_hand = 0.7 * 4 * (p * (p.log() - q.log())).sum(dim=1).mean() + 0.3 * F.cross_entropy(student, labels)
    valid = torch.ones(7, dtype=torch.bool)
    ours = reference.kl_loss(student, teacher, valid, labels, temperature=2.0, terms=KL.scaled(0.7), ce=0.3)
    torch.testing.assert_close(ours, by_hand, rtol=1e-12, atol=0)
    library = F.kl_div(F.log_softmax(student, dim=1), F.softmax(teacher, dim=1), reduction="batchmean")
    plain = reference.kl_loss(student, teacher, valid, None, temperature=1.0, terms=KL, ce=0.0)
    torch.testing.assert_close(plain, library, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("temperature", "terms", "ce"), TERMS + OTHERS)
@pytest.mark.parametrize(("tokens", "vocab"), [(1, 1), (3, 17), (33, 1000), (20, 4099)])
def test_fp32_equals_float64(
    form: str, tokens: int, vocab: int, temperature: float, terms: ck.Divergences, ce: float
) -> None:
    case = Case(tokens, vocab, torch.float32)
    if tokens == 1:
        case.labels[:], case.mask[:] = 0, True
    options = {"temperature": temperature, "terms": terms, "ce": ce}
    loss = case.fused(labels=case.labels, mask=case.mask, **options)
    (loss.total * 3).backward()
    valid = case.mask & (case.labels >= 0)
    expected, hidden, head = case.plain(torch.float64, valid, temperature, terms, ce)
    torch.testing.assert_close(loss.total.detach().double(), expected, rtol=1e-5, atol=1e-6)
    for actual, wanted in zip(case.gradients(), (hidden, head), strict=True):
        torch.testing.assert_close(actual.double(), 3 * wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max() + 1e-3))


@pytest.mark.parametrize(("temperature", "terms", "ce"), TERMS + OTHERS)
def test_bf16_equals_plain_bf16_torch(form: str, temperature: float, terms: ck.Divergences, ce: float) -> None:
    """The same rounded logits give the same value; the gradient is as close to float64 as plain torch's is."""
    case = Case(40, 4099, torch.bfloat16)
    loss = case.fused(labels=case.labels, temperature=temperature, terms=terms, ce=ce)
    loss.total.backward()
    valid = case.labels >= 0
    plain = case.plain(torch.bfloat16, valid, temperature, terms, ce)
    truth = case.plain(torch.float64, valid, temperature, terms, ce)
    assert distance(loss.total.detach(), plain[0]) < 1e-5
    for actual, ordinary, exact in zip(case.gradients(), plain[1:], truth[1:], strict=True):
        assert actual.dtype == torch.bfloat16
        assert distance(actual, exact) < 1.1 * distance(ordinary, exact) + 1e-3


@pytest.mark.parametrize("wide", ["hidden", "head", "both"])
def test_autocast(form: str, wide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "SLICE", 5000)  # heads are cast in several slices
    case = Case(40, 2003, torch.float32)
    if wide == "hidden":
        case.student_head = case.student_head.detach().bfloat16().requires_grad_()
    if wide == "head":
        case.student_hidden = case.student_hidden.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = case.fused(labels=case.labels)
    loss.total.backward()
    valid = case.labels >= 0
    plain = case.plain(torch.bfloat16, valid, 1.0, KL, 0.0)
    truth = case.plain(torch.float64, valid, 1.0, KL, 0.0)
    assert distance(loss.total.detach(), plain[0]) < 1e-5
    for actual, ordinary, exact in zip(case.gradients(), plain[1:], truth[1:], strict=True):
        assert distance(actual, exact) < 1.1 * distance(ordinary, exact) + 1e-3
    assert case.gradients()[0].dtype == case.student_hidden.dtype
    assert case.gradients()[1].dtype == case.student_head.dtype


def test_every_divergence_by_its_definition() -> None:
    """reference.weighted_divergence against sums of p log(p/q) over hand-made mixtures, in float64."""
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(7, 11, generator=generator, dtype=torch.float64).mul(3).softmax(1) for _ in range(2))

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum(1)

    m = 0.3 * p + 0.7 * q
    expected = {
        ck.Divergences(2): 2 * kl(p, q),
        ck.Divergences(0, 3): 3 * kl(q, p),
        ck.Divergences(0, 0, 2, beta=0.3): 2 * (0.3 * kl(p, m) + 0.7 * kl(q, m)),
        ck.Divergences(0, 0, 0, 1, alpha=0.1): kl(p, 0.1 * p + 0.9 * q),
        ck.Divergences(0, 0, 0, 0, 1, alpha=0.1): kl(q, 0.1 * q + 0.9 * p),
    }
    for terms, wanted in expected.items():
        torch.testing.assert_close(reference.weighted_divergence(p.log(), q.log(), terms), wanted, rtol=1e-10, atol=0)


def test_every_term_within_a_thousandth_at_full_vocabulary(form: str) -> None:
    """Value and gradients against plain fp32 torch, at the vocabulary of the default model."""
    if form in ("portable", "avx2"):
        pytest.skip("too slow for no new code path")
    for terms in (ck.Divergences(*(float(i == j) for j in range(5))) for i in range(5)):
        case = Case(24, 49_152, torch.float32)
        loss = case.fused(terms=terms)
        loss.total.backward()
        plain = case.plain(torch.float32, torch.ones(24, dtype=torch.bool), 1.0, terms, 0.0)
        for actual, wanted in zip((loss.total.detach(), *case.gradients()), plain, strict=True):
            assert distance(actual, wanted) < 1e-3, terms


def test_chunks_change_nothing(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = Case(37, 501, torch.float32), Case(37, 501, torch.float32)
    mixed = ck.Divergences(0.5, 0.1, 0.2, 0.3, 0.4)
    first = whole.fused(labels=whole.labels, terms=mixed, ce=0.2)
    first.total.backward()
    monkeypatch.setattr(chunks, "WORKSPACE", 4 * 501 * 8)  # four rows at a time
    second = parts.fused(labels=parts.labels, terms=mixed, ce=0.2)
    second.total.backward()
    torch.testing.assert_close(second.total, first.total, rtol=1e-6, atol=0)
    for actual, expected in zip(parts.gradients(), whole.gradients(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_masked_tokens_do_not_leak(form: str) -> None:
    clean, dirty = Case(30, 301, torch.float32), Case(30, 301, torch.float32)
    with torch.no_grad():
        dirty.student_hidden[~dirty.mask] = float("nan")
        dirty.teacher_hidden[~dirty.mask] = 1e30
    losses = [case.fused(mask=case.mask) for case in (clean, dirty)]
    for loss in losses:
        loss.total.backward()
    assert torch.equal(losses[0].total, losses[1].total)
    for a, b in zip(clean.gradients(), dirty.gradients(), strict=True):
        assert torch.equal(a, b)
    assert bool((clean.gradients()[0][~clean.mask] == 0).all())
    # a mean over valid tokens: dropping the others from the input changes nothing
    short = Case(30, 301, torch.float32)
    kept = [short.student_hidden[short.mask], short.student_head, short.teacher_hidden[short.mask], short.teacher_head]
    torch.testing.assert_close(ck.fused_kl(*kept).total, losses[0].total)


def test_nothing_valid_is_zero(form: str) -> None:
    case = Case(5, 50, torch.float32)
    loss = case.fused(mask=torch.zeros(5))
    loss.total.backward()
    assert loss.total.item() == 0.0 and not any(bool(g.any()) for g in case.gradients())


def test_means_and_no_grad(form: str) -> None:
    case = Case(30, 301, torch.float32)
    trained = case.fused(labels=case.labels, temperature=2.0, terms=KL.scaled(0.7), ce=0.3)
    torch.testing.assert_close(trained.total.detach(), 0.7 * 4 * trained.kl + 0.3 * trained.ce)
    assert not trained.kl.requires_grad and not trained.ce.requires_grad
    with torch.no_grad():
        watched = case.fused(labels=case.labels, temperature=2.0, terms=KL.scaled(0.7), ce=0.3)
    assert not watched.total.requires_grad
    torch.testing.assert_close(watched.total, trained.total.detach())
    case.student_head.requires_grad_(False)
    frozen = case.fused(labels=case.labels)
    frozen.total.backward(retain_graph=True)
    assert case.student_head.grad is None and case.student_hidden.grad is not None
    with pytest.raises(RuntimeError, match="made once"):
        frozen.total.backward()


def test_self_distillation_is_zero(form: str) -> None:
    case = Case(30, 3001, torch.float32)
    same = (case.student_hidden.detach(), case.student_head.detach())
    loss = ck.fused_kl(case.student_hidden, case.student_head, *same, terms=ck.Divergences(1, 1, 1, 1, 1))
    loss.total.backward()
    assert abs(loss.total.item()) < 1e-6
    assert float(case.gradients()[0].abs().max()) < 1e-7


def test_operation_is_well_formed() -> None:
    student, teacher = torch.randn(4, 33), torch.randn(4, 33)
    labels = torch.tensor([1, 2, -100, 32])
    torch.library.opcheck(
        torch.ops.compress_kernels.divergence_rows.default,
        (student, teacher, labels, 1.0, KL.as_list(), 0.5, True, True),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_mistakes_are_explained() -> None:
    case = Case(5, 50, torch.float32)
    with pytest.raises(ValueError, match="no labels"):
        case.fused(ce=0.5)
    with pytest.raises(ValueError, match="temperature is 0"):
        case.fused(temperature=0)
    with pytest.raises(ValueError, match="alpha is 1"):
        ck.Divergences(alpha=1)
    with pytest.raises(ValueError, match=r"mask has shape \(4,\): expected \(5,\)"):
        case.fused(mask=torch.ones(4))
    with pytest.raises(ValueError, match="one vocabulary"):
        ck.fused_kl(case.student_hidden, case.student_head, case.teacher_hidden, case.teacher_head[:-1])
    with pytest.raises(ValueError, match=r"expected \[T, D\] and \[V, D\]"):
        ck.fused_kl(case.student_hidden[None], case.student_head, case.teacher_hidden, case.teacher_head)
