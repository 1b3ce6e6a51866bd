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


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"temperature": -1}, {"kl": -1}, {"kl": 0, "ce": 0}])
def test_nonsense_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(UserError):
        Logits(**fields)
