"""Each divergence of the fused loss against plain torch: `python kernels/bench/divergences.py [--tokens 1024]`.

Plain torch is the formula on fp32 log-softmaxes (`reference_rows.weighted_divergence`), the student's with autograd;
stored targets are 64 tokens of every position, and plain is then the forward KL of a teacher that computes along.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import compress_kernels as ck
import torch
import torch.nn.functional as F
from compress_kernels.reference_rows import weighted_divergence
from fused_kl import Case
from record import alternate, peak_bytes, record
from torch import Tensor

TERMS = {
    "forward KL": ck.Divergences(),
    "reverse KL": ck.Divergences(0, 1),
    "Jensen-Shannon": ck.Divergences(0, 0, 1),
    "skewed KL": ck.Divergences(0, 0, 0, 1),
    "skewed reverse KL": ck.Divergences(0, 0, 0, 0, 1),
    "all five": ck.Divergences(1, 1, 1, 1, 1),
}


def plain(case: Case, terms: ck.Divergences) -> Tensor:
    """Whole logits of both models."""
    case.clear()
    with torch.no_grad():
        log_p = F.log_softmax((case.teacher_hidden @ case.teacher_head.t()).float(), dim=1)
    log_q = F.log_softmax((case.hidden @ case.head.t()).float(), dim=1)
    loss = weighted_divergence(log_p, log_q, terms).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def fused(case: Case, terms: ck.Divergences) -> Tensor:
    """Ours."""
    case.clear()
    loss = ck.fused_kl(case.hidden, case.head, case.teacher_hidden, case.teacher_head, terms=terms).total
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def stored(case: Case, targets: ck.SparseTargets) -> Tensor:
    """Ours, without a teacher."""
    case.clear()
    loss = ck.sparse_kl(case.hidden, case.head, targets).total
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def main() -> None:
    """Forward and backward in ms, and memory above inputs and returned gradients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    case = Case(options.tokens, options.vocab, options.width, torch.bfloat16)
    forms: dict[str, Callable[[], Tensor]] = {}
    for name, terms in TERMS.items():
        forms[f"{name}, plain"] = lambda terms=terms: plain(case, terms)  # type: ignore[misc]
        forms[f"{name}, fused"] = lambda terms=terms: fused(case, terms)  # type: ignore[misc]
    for name, generator in (("stored top 64", None), ("64 stored draws", torch.Generator().manual_seed(0))):
        targets = ck.sparse_targets(case.teacher_hidden, case.teacher_head, 64, generator=generator)
        forms[name] = lambda targets=targets: stored(case, targets)  # type: ignore[misc]
    fused(case, TERMS["forward KL"])  # loads and compiles what there is to load and compile
    peaks = {}
    for name, form in forms.items():
        case.clear()
        peaks[name] = max(0, peak_bytes(form) - case.returned_bytes()) / 2**20
    label = f"{options.tokens}x{options.vocab} D={options.width} bfloat16"
    seconds = alternate(forms, options.rounds)
    record("divergences", [(label, name, seconds[name] * 1e3, "ms", peaks[name]) for name in forms])


if __name__ == "__main__":
    main()
