"""The Triton kernel of the distillation row operation: a program per row, two
sweeps, and one more for divergences besides the forward KL. Derivation: fused_kl.py."""

# ruff: noqa: PLR0912, PLR0913, PLR0915, PLR0917 - a kernel takes pointers one by one and is one function
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _online(x, maximum, total):  # type: ignore[no-untyped-def]
    """Running maximum and sum of exp(x - maximum)."""
    wider = tl.maximum(maximum, tl.max(x, axis=0))
    return wider, total * tl.exp(maximum - wider) + tl.sum(tl.exp(x - wider), axis=0)


@triton.jit
def _log1p(x):  # type: ignore[no-untyped-def]
    """log(1 + x), the rounding of 1 + x made up for."""
    u = tl.maximum(1.0 + x, 1.2e-38)
    return tl.log(u) + (x - (u - 1.0)) / u


@triton.jit
def _others(  # type: ignore[no-untyped-def]
    s_logp,
    t_logp,
    reverse_kl,
    js,
    skew_kl,
    skew_reverse_kl,
    beta,
    alpha,
    REVERSE: tl.constexpr,
    JS: tl.constexpr,
    SKEW: tl.constexpr,
    SKEW_REVERSE: tl.constexpr,
):
    """Weighted divergences besides the forward KL, their slopes psi, and q; see csrc/divergences_body.h."""
    s_logp, t_logp = tl.maximum(s_logp, -87.0), tl.maximum(t_logp, -87.0)
    p, q = tl.exp(t_logp), tl.exp(s_logp)
    excess = q - p
    weighted, psi = tl.zeros_like(q), tl.zeros_like(q)
    if REVERSE:
        ratio = s_logp - t_logp
        weighted += reverse_kl * (q * ratio - excess)
        psi += reverse_kl * ratio
    if JS:
        of_q, of_p = -_log1p(-beta * excess / q), -_log1p((1.0 - beta) * excess / p)
        weighted += js * (beta * (p * of_p) + (1.0 - beta) * (q * of_q))
        psi += js * (1.0 - beta) * of_q
    moved = (1.0 - alpha) * excess
    if SKEW:
        weighted += skew_kl * (moved - p * _log1p(moved / p))
        psi += skew_kl * (1.0 - alpha) * moved / (p + moved)
    if SKEW_REVERSE:
        of_q = -_log1p(-moved / q)
        weighted += skew_reverse_kl * (q * of_q - moved)
        psi += skew_reverse_kl * (of_q - alpha * moved / (q - moved))
    return weighted, psi, q


@triton.jit
def divergence_kernel(  # type: ignore[no-untyped-def]
    student_ptr,
    teacher_ptr,
    labels_ptr,
    kl_ptr,
    weighted_ptr,
    nll_student_ptr,
    nll_teacher_ptr,
    top1_ptr,
    vocab,
    inverse_temperature,
    kl,
    reverse_kl,
    js,
    skew_kl,
    skew_reverse_kl,
    beta,
    alpha,
    ce,
    LABELS: tl.constexpr,
    PLAIN: tl.constexpr,
    GRADIENT: tl.constexpr,
    TOP1: tl.constexpr,
    REVERSE: tl.constexpr,
    JS: tl.constexpr,
    SKEW: tl.constexpr,
    SKEW_REVERSE: tl.constexpr,
    TILE: tl.constexpr,
):
    """One row: divergences, likelihoods, top-1 equality, gradient over the student logits."""
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

    OTHERS: tl.constexpr = REVERSE or JS or SKEW or SKEW_REVERSE
    mean = 0.0
    if OTHERS:
        weighted, slope = tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32)
        for start in range(0, vocab, TILE):
            at = start + tl.arange(0, TILE)
            inside = at < vocab
            s = tl.load(student_ptr + at, mask=inside, other=0.0).to(tl.float32) * inverse_temperature - s_log
            t = tl.load(teacher_ptr + at, mask=inside, other=0.0).to(tl.float32) * inverse_temperature - t_log
            term, psi, q = _others(
                s, t, reverse_kl, js, skew_kl, skew_reverse_kl, beta, alpha, REVERSE, JS, SKEW, SKEW_REVERSE
            )
            weighted += tl.where(inside, term, 0.0)
            slope += tl.where(inside, q * psi, 0.0)
        mean = tl.sum(slope, axis=0)

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
            gradient = kl * (q - p)
            if OTHERS:
                _, psi, bounded = _others(
                    s_logp,
                    t_logp,
                    reverse_kl,
                    js,
                    skew_kl,
                    skew_reverse_kl,
                    beta,
                    alpha,
                    REVERSE,
                    JS,
                    SKEW,
                    SKEW_REVERSE,
                )
                gradient += bounded * (psi - mean)
            gradient *= inverse_temperature
            if LABELS:
                plain = q if PLAIN else tl.exp(s - s_plain_log)
                gradient += tl.where(known, ce * (plain - tl.where(at == label, 1.0, 0.0)), 0.0)
            tl.store(student_ptr + at, gradient.to(student_ptr.dtype.element_ty), mask=inside)
    total = tl.sum(divergence, axis=0)
    tl.store(kl_ptr + row, total)
    if OTHERS:
        tl.store(weighted_ptr + row, kl * total + tl.sum(weighted, axis=0))
    else:
        tl.store(weighted_ptr + row, kl * total)
