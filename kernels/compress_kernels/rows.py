"""What the distillation row operation takes and gives (the operation itself: fused_kl.py)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RowRequest:
    """One chunk of logits.

    student, teacher: [R, V] floating point, contiguous; labels: int64 [R] or None, a label outside [0, V) is ignored;
    temperature: softmax temperature of the KL; kl_scale, ce_scale: factors of the two terms in the gradient;
    want_gradient: overwrite `student` with the gradient of kl_scale * KL + ce_scale * CE to the logits, where KL is the
    plain divergence of the two tempered softmaxes; want_top1: compare the two argmaxes.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor | None
    temperature: float = 1.0
    kl_scale: float = 0.0
    ce_scale: float = 0.0
    want_gradient: bool = False
    want_top1: bool = False


@dataclass(frozen=True)
class RowResult:
    """Per row, fp32 [R]: the divergence, the student's and the teacher's negative log-likelihood of the label (0
    where it is ignored); top1_equal: bool [R], False unless it was wanted. A tie goes to the smaller index."""

    kl: Tensor
    nll_student: Tensor
    nll_teacher: Tensor
    top1_equal: Tensor
