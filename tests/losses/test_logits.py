"""The distillation loss against plain formulas."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from compress.errors import UserError
from compress.losses.logits import Logits

VOCAB, WIDTH = 50, 12


def sample() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 9, WIDTH), torch.randn(3, 9, 2 * WIDTH)
    return student, torch.randn(VOCAB, WIDTH), teacher, torch.randn(VOCAB, 2 * WIDTH), torch.randint(0, VOCAB, (3, 9))


@pytest.mark.parametrize(
    ("temperature", "kl", "ce"), [(1.0, 1.0, 0.0), (2.0, 1.0, 0.0), (0.5, 0.3, 0.7), (3.0, 0.0, 1.0)]
)
def test_equals_the_formula_in_value_and_gradient(temperature: float, kl: float, ce: float) -> None:
    student, head, teacher, teacher_head, ids = sample()
    student.requires_grad_(True)
    scored = torch.ones(3, 8, dtype=torch.bool)
    scored[1, 5:] = False
    found = Logits(temperature, kl, ce)((student, head), (teacher, teacher_head), ids, scored).total
    found.backward()
    gradient, student.grad = student.grad, None

    s = (student[:, :-1] @ head.T)[scored].double()
    t = (teacher[:, :-1] @ teacher_head.T)[scored].double()
    softened = kl_div((s / temperature).log_softmax(-1), (t / temperature).softmax(-1), reduction="batchmean")
    expected = kl * temperature**2 * softened + ce * cross_entropy(s, ids[:, 1:][scored])
    expected.backward()
    assert float(found) == pytest.approx(float(expected), rel=1e-4)
    assert gradient is not None and student.grad is not None
    torch.testing.assert_close(gradient, student.grad, rtol=1e-3, atol=1e-6)


def test_student_that_is_its_teacher_loses_nothing() -> None:
    student, head, _, _, ids = sample()
    found = Logits()((student, head), (student, head), ids, torch.ones(3, 8, dtype=torch.bool))
    assert float(found.total) == pytest.approx(0, abs=1e-6)


def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * (a / b).log()).sum(-1).mean()


BY_NAME = {
    "reverse_kl": lambda p, q: kl(q, p),
    "js": lambda p, q: 0.2 * kl(p, 0.2 * p + 0.8 * q) + 0.8 * kl(q, 0.2 * p + 0.8 * q),
    "skew_kl": lambda p, q: kl(p, 0.3 * p + 0.7 * q),
    "skew_reverse_kl": lambda p, q: kl(q, 0.3 * q + 0.7 * p),
}


@pytest.mark.parametrize("name", BY_NAME)
def test_each_weight_reaches_its_divergence(name: str) -> None:
    student, head, teacher, teacher_head, ids = sample()
    student = student.requires_grad_(True)
    loss = Logits(2.0, 0.5, 0.0, js_beta=0.2, skew_alpha=0.3, **{name: 0.7})
    found = loss((student, head), (teacher, teacher_head), ids, torch.ones(3, 8, dtype=torch.bool))
    found.total.backward()
    gradient, student.grad = student.grad, None
    q, p = ((x[:, :-1] @ w.T).double().div(2).softmax(-1) for x, w in ((student, head), (teacher, teacher_head)))
    expected = 4 * (0.5 * kl(p, q) + 0.7 * BY_NAME[name](p, q))
    expected.backward()
    assert float(found.total) == pytest.approx(float(expected), rel=1e-4)
    assert float(found.kl) == pytest.approx(float(kl(p, q)), rel=1e-4)  # the report's measure, whatever is trained on
    assert gradient is not None and student.grad is not None
    torch.testing.assert_close(gradient, student.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"temperature": -1},
        {"kl": -1},
        {"kl": 0, "ce": 0},
        {"js": -0.1},
        {"js": 1, "js_beta": 1},
        {"skew_kl": 1, "skew_alpha": 0},
    ],
)
def test_nonsense_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(UserError):
        Logits(**fields)
