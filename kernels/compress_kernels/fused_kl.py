"""The distillation loss on full logits, computed chunk by chunk with its gradient, straight from the hidden states.

Hinton et al. (arXiv:1503.02531); the gradient taken in the forward pass follows Liger Kernel (Hsu et al.,
arXiv:2410.10989). For a valid token with student logits s = W h, teacher logits t = U g (V entries each), temperature
T and label y:

    p = softmax(t/T)    q = softmax(s/T)    CE = -log softmax(s)_y
    total = mean over valid tokens of  T^2 * sum_i w_i D_i(p, q) + ce * CE

with the weights w_i of `Divergences`: forward KL(p || q) (covers the teacher's modes), reverse KL(q || p) (MiniLLM,
arXiv:2306.08543: seeks them), generalized Jensen-Shannon (GKD, arXiv:2306.13649), skewed KL and its reverse
(DistiLLM, arXiv:2402.03898). T^2 keeps the size of the gradient independent of T (the logits' gradient shrinks as
1/T^2: once by the chain rule, once because the softmaxes differ by 1/T). With u = softmax(s) and z = s/T:

    d KL(p || q) / d z = q - p      d CE / d s = u - onehot(y)
    any other D = sum_v g(p_v, q_v):  d D / d z = q (psi - sum_v q_v psi_v),  psi = d g / d q  up to a constant:
        reverse KL          log(q/p)
        Jensen-Shannon      (1 - beta) log(q/m)                               m = beta p + (1 - beta) q
        skewed KL           (1 - alpha)^2 (q - p) / m                         m = alpha p + (1 - alpha) q
        its reverse         log(q/m) + alpha (1 - alpha) (p - q) / m          m = alpha q + (1 - alpha) p
    =>  G = T [w_kl (q - p) + q (psi - sum q psi)] + ce (u - onehot(y))
    d total / d h = W^T G / N     d total / d W = sum over tokens of G h^T / N          (N valid tokens)

so no [T, V] tensor needs to live: a chunk of rows is projected, G replaces the student's logits in place, two
products carry it on, and backward only multiplies by the incoming gradient and 1/N (late, so that fp16 does not
underflow).

Roofline at N tokens, width D: 8 N V D operations in four products (6 without the gradient to W), against 6 bytes of
logit traffic per token and entry in the row pass (bf16, each logit read once and written once). At D = 576 the
products are 768 operations per byte: compute bound, so the row pass only has to be fast enough not to show. Terms
other than the forward KL need sum q psi before the gradient: one more sweep over a row that is in cache.

Memory: WORKSPACE bytes for the two logit chunks plus casts and products in slices, besides the returned gradients.
The head's gradient is summed over chunks in the head's own dtype: fp32 for an fp32 head (mixed precision), bf16 for a
bf16 head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from compress_kernels.backend import backend
from compress_kernels.chunked_loss import Done, FusedLoss, check_tokens, chunked_loss, valid_tokens
from compress_kernels.chunks import chunked_logits
from compress_kernels.rows import Divergences, RowRequest

FORWARD = Divergences()


class Divergence(NamedTuple):
    """Per token [T]: fp32 KL(teacher || student) and negative log-likelihoods (0 where the label is ignored), and
    whether the two models rank the same token first (bool)."""

    kl: Tensor
    nll_student: Tensor
    nll_teacher: Tensor
    top1_equal: Tensor


_Rows = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _divergence_rows(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    temperature: float,
    terms: list[float],
    ce: float,
    want_gradient: bool,
    want_top1: bool,
) -> _Rows:
    request = RowRequest(student, teacher, labels, temperature, Divergences(*terms), ce, want_gradient, want_top1)
    result = backend(student.device).divergence_rows(request)
    return result.kl, result.weighted, result.nll_student, result.nll_teacher, result.top1_equal


def _divergence_rows_fake(student: Tensor, *_: object) -> _Rows:
    rows = [student.new_empty(student.shape[0], dtype=torch.float32) for _ in range(4)]
    return rows[0], rows[1], rows[2], rows[3], student.new_empty(student.shape[0], dtype=torch.bool)


torch.library.define(
    "compress_kernels::divergence_rows",
    "(Tensor(a!) student, Tensor teacher, Tensor? labels, float temperature, float[] terms, float ce, "
    "bool want_gradient, bool want_top1) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.impl("compress_kernels::divergence_rows", ("cpu", "cuda"), _divergence_rows)
torch.library.register_fake("compress_kernels::divergence_rows", _divergence_rows_fake)


def _check(student_hidden: Tensor, student_head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor) -> None:
    for name, hidden, head in (("student", student_hidden, student_head), ("teacher", teacher_hidden, teacher_head)):
        if hidden.ndim != 2 or head.ndim != 2 or hidden.shape[1] != head.shape[1]:
            shapes = f"{tuple(hidden.shape)} and {tuple(head.shape)}"
            raise ValueError(f"{name} hidden states and head are {shapes}: expected [T, D] and [V, D]")
    if student_hidden.shape[0] != teacher_hidden.shape[0]:
        given = f"{student_hidden.shape[0]} and {teacher_hidden.shape[0]}"
        raise ValueError(f"student and teacher have {given} tokens: expected the same tokens")
    if student_head.shape[0] != teacher_head.shape[0]:
        given = f"{student_head.shape[0]} and {teacher_head.shape[0]}"
        raise ValueError(f"student and teacher heads have {given} rows: expected one vocabulary")


def fused_kl(  # noqa: PLR0913 - the two models are four tensors, the loss five plain values
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    *,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    terms: Divergences = FORWARD,
    ce: float = 0.0,
) -> FusedLoss:
    """Mean over valid tokens of temperature^2 * sum of `terms` (teacher, student) + ce * CE(student, labels).

    student_hidden: [T, Ds], student_head: [V, Ds], teacher_hidden: [T, Dt], teacher_head: [V, Dt], in bf16, fp16 or
    fp32; labels: int64 [T], already shifted, -100 for a token to leave out; mask: bool or 0/1 [T]. A token is valid
    if the mask keeps it and its label is not negative; with no valid token the loss is 0. The teacher is constant.
    Gradients go to the student's hidden states and to its head, each if it requires one, for one backward pass.

    Raises ValueError for shapes that do not fit, temperature <= 0, or ce without labels.
    """
    _check(student_hidden, student_head, teacher_hidden, teacher_head)
    index = valid_tokens(student_hidden, labels, mask, temperature, ce)
    if index is not None:
        student_hidden, teacher_hidden = student_hidden[index], teacher_hidden[index]
        labels = None if labels is None else labels[index]
    teacher = teacher_hidden.detach(), teacher_head.detach()
    weights = terms.scaled(temperature**2).as_list()

    def produce(hidden: Tensor, head: Tensor, want: bool) -> Iterator[Done]:
        for chunk in chunked_logits(hidden, head, *teacher):
            chosen = None if labels is None else labels[chunk.tokens]
            rows = torch.ops.compress_kernels.divergence_rows(
                chunk.student, chunk.teacher, chosen, temperature, weights, ce, want, False
            )
            sums = torch.stack([row.sum(dtype=torch.float64) for row in rows[:3]])
            yield Done(chunk.tokens, chunk.hidden, chunk.student, sums)

    return chunked_loss(student_hidden, student_head, produce, ce)


@torch.no_grad()
def divergence(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    labels: Tensor,
) -> Divergence:
    """Per-token comparison of two models at temperature 1, in chunks, softmax in fp32.

    Shapes and errors as fused_kl; a token with a negative label still gets its divergence.
    """
    _check(student_hidden, student_head, teacher_hidden, teacher_head)
    check_tokens("labels", labels, student_hidden.shape[0])
    parts: list[_Rows] = []
    for chunk in chunked_logits(student_hidden, student_head, teacher_hidden, teacher_head):
        chosen = labels[chunk.tokens]
        parts.append(
            torch.ops.compress_kernels.divergence_rows(
                chunk.student, chunk.teacher, chosen, 1.0, FORWARD.as_list(), 0.0, False, True
            )
        )
    if not parts:
        empty = student_hidden.new_empty(0, dtype=torch.float32)
        return Divergence(empty, empty, empty, empty.bool())
    kl, _, *others = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return Divergence(kl, *others)
