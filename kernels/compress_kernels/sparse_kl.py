"""The distillation loss against a teacher of which few numbers per token are kept, fused and chunked as fused_kl.

Two forms of what is kept, both of the teacher's p = softmax(t/T); q = softmax(s/T) is the student's:

top-k: the k largest probabilities and the mass of all others, the tail. Cutting the tail off and normalizing again
    would teach the student to be too sure (Sparse Logit Sampling, arXiv:2503.16870). Kept as one outcome more, the
    loss is the divergence of two distributions over k + 1 outcomes, at most the whole one and zero where the student
    is right on all of them. With g_b = d D / d z_b, the gradient to the logit of outcome b (fused_kl.py), a token in
    the tail gets its share of the tail's: G_v = g_tail q_v / q_tail.

sampled: k draws from p, each standing for 1/k (importance sampling with p itself as proposal). The forward KL is linear
    in p but for the teacher's entropy, which is kept: KL = sum_v p_v (-log q_v) - H(p), so both the estimate and its
    gradient q - counts/k are unbiased. The draws are systematic: k points with one random offset, evenly spaced over
    the cumulated p, so a token is drawn floor(k p) or ceil(k p) times; independent draws scatter far more. Other
    divergences are not linear in p and are refused.

k = 0 in the first form leaves one outcome, the tail: no teacher at all, the cross-entropy with the labels alone.

Roofline: as fused_kl without the teacher's half of the logits: 6 N V D operations, and no forward pass of the teacher.
Rows are worked on some at a time in fp32, in cache; memory is WORKSPACE bytes for the student's chunk and that slice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compress_kernels.chunked_loss import Done, FusedLoss, chunked_loss, valid_tokens
from compress_kernels.chunks import Side, chunked
from compress_kernels.fused_kl import FORWARD
from compress_kernels.reference_rows import SLICE, nll, slopes, weighted_divergence
from compress_kernels.rows import Divergences


@dataclass(frozen=True)
class SparseTargets:
    """What is kept of the teacher, for T tokens.

    ids: int64 [T, k]. Top-k: `log_mass` fp32 [T, k + 1], log-probabilities of ids and, last, of all other tokens.
    Sampled: `entropy` fp32 [T] of the whole distribution; ids are draws and may repeat.
    """

    ids: Tensor
    log_mass: Tensor | None = None
    entropy: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.log_mass is None) == (self.entropy is None):
            raise ValueError("targets need log_mass (top-k) or entropy (sampled), one of the two")

    def __getitem__(self, rows: slice | Tensor) -> SparseTargets:
        parts = (None if part is None else part[rows] for part in (self.ids, self.log_mass, self.entropy))
        return SparseTargets(*parts)  # type: ignore[arg-type]


@torch.no_grad()
def sparse_targets(
    hidden: Tensor, head: Tensor, k: int, temperature: float = 1.0, generator: torch.Generator | None = None
) -> SparseTargets:
    """What to keep of a teacher: its k most likely tokens and the tail, or with a `generator` k draws.

    hidden: [T, D], head: [V, D]; logits are made in chunks. Raises ValueError unless 0 < k < V.
    """
    if not 0 < k < head.shape[0]:
        raise ValueError(f"k is {k}: expected 1 to {head.shape[0] - 1}, fewer than the vocabulary has tokens")
    found = []
    for part in chunked((hidden, head)):
        for rows in _slices(part.logits[0]):
            logits = part.logits[0][rows].float() / temperature
            found.append(_largest(logits, k) if generator is None else _drawn(logits, k, generator))
    columns = [torch.cat(column) for column in zip(*found, strict=True)]
    return SparseTargets(columns[0], **{"log_mass" if generator is None else "entropy": columns[1]})


def _slices(logits: Tensor) -> Iterator[slice]:
    step = max(1, SLICE // logits.shape[1])
    return (slice(begin, begin + step) for begin in range(0, logits.shape[0], step))


def _largest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, ids = logits.topk(k, dim=1)
    rest = logits.scatter(1, ids, float("-inf")).logsumexp(1, keepdim=True)
    return ids, torch.cat([values, rest], 1).log_softmax(1)


def _drawn(logits: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    entropy = -(p * log_p).nan_to_num(nan=0.0).sum(1)
    reached = p.double().cumsum(1)
    offset = torch.rand(len(p), 1, dtype=torch.float64, generator=generator).to(p.device)
    points = (torch.arange(k, device=p.device) + offset) / k * reached[:, -1:]
    ids = torch.searchsorted(reached, points, right=True).clamp(max=p.shape[1] - 1)
    return ids, entropy


def sparse_kl(
    student_hidden: Tensor,
    student_head: Tensor,
    targets: SparseTargets,
    *,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    terms: Divergences = FORWARD,
    ce: float = 0.0,
) -> FusedLoss:
    """Mean over valid tokens of temperature^2 * sum of `terms` (targets, student) + ce * CE(student, labels).

    Shapes, validity, gradients and errors as fused_kl; `targets` were made at the same temperature. `kl` of the result
    is the forward KL over the k + 1 outcomes, or its unbiased estimate from the draws (which can be below zero).

    Raises ValueError for divergences that draws cannot estimate.
    """
    tokens = student_hidden.shape[0]
    if targets.ids.ndim != 2 or len(targets.ids) != tokens:
        raise ValueError(f"targets are for {tuple(targets.ids.shape)}: expected ({tokens}, k), one row per token")
    if targets.entropy is not None and not terms.only_forward:
        raise ValueError("draws estimate the forward KL only: keep the top k for other divergences")
    index = valid_tokens(student_hidden, labels, mask, temperature, ce)
    if index is not None:
        student_hidden, targets = student_hidden[index], targets[index]
        labels = None if labels is None else labels[index]
    weights = terms.scaled(temperature**2)

    def produce(hidden: Tensor, head: Tensor, want: bool) -> Iterator[Done]:
        side: Side = hidden, head
        for part in chunked(side):
            logits, kept = part.logits[0], targets[part.tokens]
            chosen = None if labels is None else labels[part.tokens]
            sums = torch.zeros(3, dtype=torch.float64, device=logits.device)
            for rows in _slices(logits):
                picked = None if chosen is None else chosen[rows]
                form = _top_rows if kept.entropy is None else _drawn_rows
                values = form(logits[rows], kept[rows], picked, temperature, weights, ce, want)
                sums += torch.stack([value.sum(dtype=torch.float64) for value in values])
            yield Done(part.tokens, part.hidden, logits, sums)

    return chunked_loss(student_hidden, student_head, produce, ce)


_Values = tuple[Tensor, Tensor, Tensor]


def _top_rows(
    out: Tensor,
    kept: SparseTargets,
    labels: Tensor | None,
    temperature: float,
    terms: Divergences,
    ce: float,
    want: bool,
) -> _Values:
    """Forward KL, weighted divergences and likelihood of each row; the gradient over `out` if wanted."""
    assert kept.log_mass is not None
    logits = out.float()
    tempered = logits / temperature
    own = tempered.gather(1, kept.ids)
    rest = tempered.scatter_(1, kept.ids, float("-inf"))
    tail = rest.logsumexp(1, keepdim=True)
    log_q, log_p = torch.cat([own, tail], 1).log_softmax(1), kept.log_mass
    kl = weighted_divergence(log_p, log_q, FORWARD)
    weighted = terms.kl * kl if terms.only_forward else weighted_divergence(log_p, log_q, terms)
    log_plain = _log_plain(logits, labels, ce, want)
    likelihood = _likelihood(logits, log_plain, labels)  # before an fp32 `out`, which `logits` is, gets the gradient
    if want:
        q, psi = log_q.exp(), slopes(log_p, log_q, terms)
        gradient = (terms.kl * (q - log_p.exp()) + q * (psi - (q * psi).sum(1, keepdim=True))) / temperature
        whole = (rest - tail).exp_().mul_(gradient[:, -1:])
        whole.scatter_add_(1, kept.ids, gradient[:, :-1])
        _finish(out, whole, log_plain, labels, ce)
    return kl, weighted, likelihood


def _drawn_rows(
    out: Tensor,
    kept: SparseTargets,
    labels: Tensor | None,
    temperature: float,
    terms: Divergences,
    ce: float,
    want: bool,
) -> _Values:
    """As `_top_rows`, from draws."""
    assert kept.entropy is not None
    logits = out.float()
    log_q = (logits / temperature).log_softmax(1)
    kl = -log_q.gather(1, kept.ids).mean(1) - kept.entropy
    log_plain = _log_plain(logits, labels, ce, want)
    likelihood = _likelihood(logits, log_plain, labels)  # before an fp32 `out`, which `logits` is, gets the gradient
    if want:
        scale = terms.kl / temperature
        whole = log_q.exp_().mul_(scale)
        whole.scatter_add_(1, kept.ids, torch.full_like(kept.ids, -scale / kept.ids.shape[1], dtype=whole.dtype))
        _finish(out, whole, log_plain, labels, ce)
    return kl, terms.kl * kl, likelihood


def _log_plain(logits: Tensor, labels: Tensor | None, ce: float, want: bool) -> Tensor | None:
    """log softmax(s) where the gradient of the cross-entropy needs it whole."""
    return logits.log_softmax(1) if want and labels is not None and ce != 0 else None


def _likelihood(logits: Tensor, log_plain: Tensor | None, labels: Tensor | None) -> Tensor:
    if labels is None:
        return torch.zeros(len(logits), device=logits.device)
    return nll(logits.log_softmax(1) if log_plain is None else log_plain, labels)


def _finish(out: Tensor, gradient: Tensor, log_plain: Tensor | None, labels: Tensor | None, ce: float) -> None:
    """Add the cross-entropy's gradient and write both over the logits."""
    if log_plain is not None and labels is not None:
        gradient += ce * log_plain.exp()
        gradient.scatter_add_(1, labels[:, None], torch.full_like(gradient[:, :1], -ce))
    out.copy_(gradient)
