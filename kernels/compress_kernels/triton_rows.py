"""The Triton kernel of the distillation row operation: a program per row, two sweeps. Derivation: fused_kl.py."""

# ruff: noqa: PLR0913, PLR0915, PLR0917 - a kernel takes pointers one by one and is one function
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _online(x, maximum, total):  # type: ignore[no-untyped-def]
    """Running maximum and sum of exp(x - maximum)."""
    wider = tl.maximum(maximum, tl.max(x, axis=0))
    return wider, total * tl.exp(maximum - wider) + tl.sum(tl.exp(x - wider), axis=0)


@triton.jit
def divergence_kernel(  # type: ignore[no-untyped-def]
    student_ptr,
    teacher_ptr,
    labels_ptr,
    kl_ptr,
    nll_student_ptr,
    nll_teacher_ptr,
    top1_ptr,
    vocab,
    inverse_temperature,
    kl_scale,
    ce_scale,
    LABELS: tl.constexpr,
    PLAIN: tl.constexpr,
    GRADIENT: tl.constexpr,
    TOP1: tl.constexpr,
    TILE: tl.constexpr,
):
    """One row: KL, likelihoods, top-1 equality, gradient over the student logits."""
    row = tl.program_id(0).to(tl.int64)
    student_ptr += row * vocab
    teacher_ptr += row * vocab
    low = -float("inf")
    s_max, t_max, s_plain_max, t_plain_max = low, low, low, low
    s_sum, t_sum, s_plain_sum, t_plain_sum = 0.0, 0.0, 0.0, 0.0
    s_top, t_top = 0, 0
    for start in range(0, vocab, TILE):
        at = start + tl.arange(0, TILE)
        s = tl.load(student_ptr + at, mask=at < vocab, other=low).to(tl.float32)
        t = tl.load(teacher_ptr + at, mask=at < vocab, other=low).to(tl.float32)
        if TOP1:
            s_here, t_here = tl.max(s, axis=0), tl.max(t, axis=0)
            s_before = s_plain_max if not PLAIN else s_max
            t_before = t_plain_max if not PLAIN else t_max
            s_top = tl.where(s_here > s_before, start + tl.argmax(s, axis=0), s_top)
            t_top = tl.where(t_here > t_before, start + tl.argmax(t, axis=0), t_top)
        s_max, s_sum = _online(s * inverse_temperature, s_max, s_sum)
        t_max, t_sum = _online(t * inverse_temperature, t_max, t_sum)
        if not PLAIN:
            s_plain_max, s_plain_sum = _online(s, s_plain_max, s_plain_sum)
            t_plain_max, t_plain_sum = _online(t, t_plain_max, t_plain_sum)
    s_log = s_max + tl.log(s_sum)
    t_log = t_max + tl.log(t_sum)
    s_plain_log = s_log
    t_plain_log = t_log
    if not PLAIN:
        s_plain_log = s_plain_max + tl.log(s_plain_sum)
        t_plain_log = t_plain_max + tl.log(t_plain_sum)

    label = tl.full((), -1, tl.int64)
    if LABELS:
        label = tl.load(labels_ptr + row)
    known = (label >= 0) & (label < vocab)
    s_label = tl.load(student_ptr + label, mask=known, other=0.0).to(tl.float32)
    t_label = tl.load(teacher_ptr + label, mask=known, other=0.0).to(tl.float32)
    tl.store(nll_student_ptr + row, tl.where(known, s_plain_log - s_label, 0.0))
    tl.store(nll_teacher_ptr + row, tl.where(known, t_plain_log - t_label, 0.0))
    if TOP1:
        tl.store(top1_ptr + row, tl.where(s_top == t_top, 1, 0).to(tl.uint8))
    tl.debug_barrier()  # the label's logit is read by every thread before the sweep below overwrites it

    divergence = tl.zeros((TILE,), tl.float32)
    for start in range(0, vocab, TILE):
        at = start + tl.arange(0, TILE)
        inside = at < vocab
        s = tl.load(student_ptr + at, mask=inside, other=0.0).to(tl.float32)
        t = tl.load(teacher_ptr + at, mask=inside, other=0.0).to(tl.float32)
        s_logp = s * inverse_temperature - s_log
        t_logp = t * inverse_temperature - t_log
        p, q = tl.exp(t_logp), tl.exp(s_logp)
        # with p = 0 (a logit of minus infinity) the term p log p is 0
        term = tl.where(p > 0.0, p * (t_logp - s_logp), 0.0) - p + q
        divergence += tl.where(inside, term, 0.0)
        if GRADIENT:
            gradient = kl_scale * (q - p)
            if LABELS:
                plain = q if PLAIN else tl.exp(s - s_plain_log)
                gradient += tl.where(known, ce_scale * (plain - tl.where(at == label, 1.0, 0.0)), 0.0)
            tl.store(student_ptr + at, gradient.to(student_ptr.dtype.element_ty), mask=inside)
    tl.store(kl_ptr + row, tl.sum(divergence, axis=0))
