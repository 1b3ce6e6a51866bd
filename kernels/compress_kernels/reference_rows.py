"""The distillation loss on logits in plain torch: its specification, part of reference.py. Derivation: fused_kl.py."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from compress_kernels.rows import Divergences, RowRequest, RowResult

SLICE = 2**19
"""Logits that are worked on at a time."""


def nll(log_probabilities: Tensor, labels: Tensor | None) -> Tensor:
    """Negative log-likelihood of each row's label, 0 where it is none."""
    rows, vocab = log_probabilities.shape
    if labels is None:
        return torch.zeros(rows, device=log_probabilities.device, dtype=log_probabilities.dtype)
    known = (labels >= 0) & (labels < vocab)
    picked = log_probabilities.gather(1, labels.where(known, torch.zeros_like(labels))[:, None])[:, 0]
    return torch.where(known, -picked, torch.zeros_like(picked))


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) of each row."""
    return F.kl_div(log_b, log_a, reduction="none", log_target=True).sum(dim=1)


def _mixture(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """log(share * a + (1 - share) * b)"""
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))


def weighted_divergence(log_p: Tensor, log_q: Tensor, terms: Divergences) -> Tensor:
    """Weighted sum of the divergences of each row, differentiable; teacher log_p and student log_q [R, V]. Returns [R].

    As defined in rows.py, term by term: the specification that everything else is checked against.
    """
    total = torch.zeros(log_q.shape[0], dtype=log_q.dtype, device=log_q.device)
    if terms.kl:
        total = total + terms.kl * _kl(log_p, log_q)
    if terms.reverse_kl:
        total = total + terms.reverse_kl * _kl(log_q, log_p)
    if terms.js:
        middle = _mixture(log_p, log_q, terms.beta)
        parts = terms.beta * _kl(log_p, middle) + (1 - terms.beta) * _kl(log_q, middle)
        total = total + terms.js * parts
    if terms.skew_kl:
        total = total + terms.skew_kl * _kl(log_p, _mixture(log_p, log_q, terms.alpha))
    if terms.skew_reverse_kl:
        total = total + terms.skew_reverse_kl * _kl(log_q, _mixture(log_q, log_p, terms.alpha))
    return total


def slopes(log_p: Tensor, log_q: Tensor, terms: Divergences) -> Tensor:
    """psi: the derivative of every term but the forward KL to the probabilities q, up to a constant [R, V]."""
    psi = torch.zeros_like(log_q)
    if terms.reverse_kl:
        psi += terms.reverse_kl * (log_q - log_p)
    if terms.js:
        psi += terms.js * (1 - terms.beta) * (log_q - _mixture(log_p, log_q, terms.beta))
    if terms.skew_kl:
        mixture = _mixture(log_p, log_q, terms.alpha)
        psi -= terms.skew_kl * (1 - terms.alpha) * (log_p - mixture).exp()
    if terms.skew_reverse_kl:
        mixture = _mixture(log_q, log_p, terms.alpha)
        psi += terms.skew_reverse_kl * (log_q - mixture + (1 - terms.alpha) * (log_p - mixture).exp())
    return psi


def divergence_rows(request: RowRequest) -> RowResult:
    """Divergences, likelihoods and (in place over the student's logits) the gradient of one chunk, in fp32.

    Some rows at a time: what is alive at once stays small and in the processor's cache.
    """
    rows, vocab = request.student.shape
    step = max(1, SLICE // max(1, vocab))
    parts = [_divergence_rows(request, slice(begin, begin + step)) for begin in range(0, rows, step)]
    if not parts:
        empty = torch.empty(0, dtype=torch.float32, device=request.student.device)
        return RowResult(empty, empty, empty, empty, empty.bool())
    return RowResult(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _divergence_rows(request: RowRequest, rows: slice) -> tuple[Tensor, ...]:
    logits, terms = request.student[rows], request.terms
    labels = None if request.labels is None else request.labels[rows]
    student, teacher = logits.float(), request.teacher[rows].float()
    log_student = F.log_softmax(student / request.temperature, dim=1)
    log_teacher = F.log_softmax(teacher / request.temperature, dim=1)
    kl = _kl(log_teacher, log_student)
    weighted = terms.kl * kl if terms.only_forward else weighted_divergence(log_teacher, log_student, terms)
    log_plain = F.log_softmax(student, dim=1)
    nll_student = nll(log_plain, labels)
    nll_teacher = nll(F.log_softmax(teacher, dim=1), labels)
    top1 = torch.zeros(student.shape[0], dtype=torch.bool, device=student.device)
    if request.want_top1:
        top1 = student.argmax(dim=1) == teacher.argmax(dim=1)
    if request.want_gradient:
        q = log_student.exp()
        gradient = terms.kl * (q - log_teacher.exp())
        if not terms.only_forward:
            psi = slopes(log_teacher, log_student, terms)
            gradient += q * (psi - (q * psi).sum(dim=1, keepdim=True))
        gradient /= request.temperature
        if labels is not None and request.ce != 0.0:
            known = ((labels >= 0) & (labels < student.shape[1])).to(student.dtype)[:, None]
            wanted = log_plain.exp()
            wanted.scatter_add_(1, labels.clamp(0, student.shape[1] - 1)[:, None], -known)
            gradient += request.ce * known * wanted
        logits.copy_(gradient)
    return kl, weighted, nll_student, nll_teacher, top1


def kl_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    valid: Tensor,
    labels: Tensor | None,
    *,
    temperature: float,
    terms: Divergences,
    ce: float,
) -> Tensor:
    """The distillation loss on whole logits [T, V], differentiable; what fused_kl computes in chunks. Scalar.

    In the dtype of the logits (fp32, or fp64 to check gradients against); valid: bool [T]; labels: int64 [T].
    """
    count = valid.sum().clamp(min=1)
    log_student = F.log_softmax(student_logits[valid] / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits[valid] / temperature, dim=1)
    total = temperature**2 * weighted_divergence(log_teacher, log_student, terms).sum()
    if labels is not None:
        total = total + ce * F.cross_entropy(student_logits[valid], labels[valid], reduction="sum")
    return total / count
