"""Divergences of single rows: their digits when small, ties, infinities and what is not a number."""

from __future__ import annotations

import compress_kernels as ck
import pytest
import torch
import torch.nn.functional as F
from compress_kernels import cpu, reference
from compress_kernels.rows import RowRequest

from tests.kernels.losses import Case, exact_kl


def test_small_divergences_keep_their_digits(form: str) -> None:
    """A student 3e-3 away: the KL is 5e-6, near the size of fp32 rounding in a naive sum of p log p."""
    if form == "reference":
        pytest.skip("the reference is the naive fp32 sum")
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(8, 30_000, generator=generator) * 3
    student = teacher + torch.randn(8, 30_000, generator=generator) * 3e-3
    exact = exact_kl(student, teacher)
    actual = cpu.divergence_rows(RowRequest(student, teacher, None)).kl
    torch.testing.assert_close(actual.double(), exact, rtol=0.01, atol=0)
    logs = F.log_softmax(teacher.double(), 1), F.log_softmax(student.double(), 1)
    for terms in (ck.Divergences(*(float(i == j) for j in range(5))) for i in range(5)):
        weighted = cpu.divergence_rows(RowRequest(student, teacher, None, 1.0, terms)).weighted
        torch.testing.assert_close(
            weighted.double(), reference.weighted_divergence(*logs, terms), rtol=0.01, atol=0, msg=str(terms)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_divergence_per_token(form: str, dtype: torch.dtype) -> None:
    case = Case(30, 4099, dtype)
    result = ck.divergence(case.student_hidden, case.student_head, case.teacher_hidden, case.teacher_head, case.labels)
    student = (case.student_hidden @ case.student_head.t()).detach().double()
    teacher = (case.teacher_hidden @ case.teacher_head.t()).double()
    log_student, log_teacher = F.log_softmax(student, 1), F.log_softmax(teacher, 1)
    kl = F.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(result.kl.double(), kl, rtol=1e-4, atol=1e-6)
    for actual, logs in ((result.nll_student, log_student), (result.nll_teacher, log_teacher)):
        expected = F.nll_loss(logs, case.labels, ignore_index=-100, reduction="none")
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
    # a bf16 tie goes to the first index on both sides
    first = [(x == x.amax(1, keepdim=True)).int().argmax(1) for x in (student, teacher)]
    if form != "reference":
        assert torch.equal(result.top1_equal, first[0] == first[1])
    assert result.top1_equal.dtype == torch.bool and not result.kl.requires_grad


def test_extreme_logits(form: str) -> None:
    """Teacher logits of minus infinity count nothing; a NaN is not hidden."""
    teacher, student = torch.randn(3, 100), torch.randn(3, 100)
    teacher[0, 50:] = float("-inf")
    student[1] *= 1e4
    student[2, 7] = float("nan")
    request = RowRequest(student.clone(), teacher, torch.tensor([3, 4, 5]), 1.0, ck.Divergences(), 0.5, True, False)
    forms = reference.divergence_rows if form == "reference" else cpu.divergence_rows
    result = forms(request)
    p = F.softmax(teacher[0, :50].double(), 0)
    expected = (p * (p.log() - F.log_softmax(student[0].double(), 0)[:50])).sum()
    if form != "reference":
        torch.testing.assert_close(result.kl[0].double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(result.kl[1:2].double(), exact_kl(student[1:2], teacher[1:2]), rtol=1e-5, atol=0)
    assert bool(result.kl[2].isnan()) and bool(request.student[2].isnan().any())
