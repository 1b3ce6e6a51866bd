"""A student near its teacher, shared by the tests of the distillation loss and of the divergences it is made of."""

from __future__ import annotations

import compress_kernels as ck
import torch
import torch.nn.functional as F
from compress_kernels import reference
from torch import Tensor


class Case:
    """A student near its teacher, as late in training; some labels ignored, some tokens masked."""

    def __init__(self, tokens: int, vocab: int, dtype: torch.dtype, student: int = 24, teacher: int = 40):
        generator = torch.Generator().manual_seed(tokens + vocab)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.student_hidden = normal(tokens, student)
        self.student_head = normal(vocab, student) * (2.5 / student**0.5)
        extra = teacher - student
        self.teacher_hidden = torch.cat([self.student_hidden, 0.3 * normal(tokens, extra)], dim=1)
        self.teacher_head = torch.cat([self.student_head, normal(vocab, extra) * (2.5 / student**0.5)], dim=1)
        self.labels = torch.randint(0, vocab, (tokens,), generator=generator)
        self.labels[::5] = -100
        self.mask = torch.rand(tokens, generator=generator) > 0.2
        for name in ("student_hidden", "student_head", "teacher_hidden", "teacher_head"):
            setattr(self, name, getattr(self, name).to(dtype))
        self.student_hidden.requires_grad_()
        self.student_head.requires_grad_()

    def fused(self, **options: object) -> ck.FusedLoss:
        return ck.fused_kl(self.student_hidden, self.student_head, self.teacher_hidden, self.teacher_head, **options)

    def gradients(self) -> tuple[Tensor, Tensor]:
        assert self.student_hidden.grad is not None and self.student_head.grad is not None
        return self.student_hidden.grad, self.student_head.grad

    def plain(
        self, dtype: torch.dtype, valid: Tensor, temperature: float, terms: ck.Divergences, ce: float
    ) -> list[Tensor]:
        """Loss and gradients by whole-tensor torch: products in `dtype`, softmax in fp32 or better."""
        hidden, head = (x.detach().to(dtype).requires_grad_() for x in (self.student_hidden, self.student_head))
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        student = (hidden @ head.t()).to(wide)
        teacher = (self.teacher_hidden.to(dtype) @ self.teacher_head.to(dtype).t()).to(wide)
        loss = reference.kl_loss(student, teacher, valid, self.labels, temperature=temperature, terms=terms, ce=ce)
        loss.backward()
        assert hidden.grad is not None and head.grad is not None
        return [loss.detach(), hidden.grad, head.grad]


def distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def exact_kl(student: Tensor, teacher: Tensor) -> Tensor:
    logs = F.log_softmax(student.double(), 1), F.log_softmax(teacher.double(), 1)
    return F.kl_div(*logs, log_target=True, reduction="none").sum(1)
