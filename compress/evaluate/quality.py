"""Perplexity, KL to the original and top-1 agreement, all from one pass.

The protocol: the text joined as it stands, non-overlapping windows, the first token of each not scored, logits in the
type of the weights, log-probabilities in fp32.

    ppl   exp of the mean of -log p(token)
    kl    mean over positions of KL(original || model), over the whole vocabulary, in nats
    top1  fraction of positions at which both would say the same token

The original's hidden states are kept instead of its logits: 2 * width bytes a token instead of 4 * vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from compress_kernels import divergence
from torch import Tensor

from compress.train.module import head_weight, last_hidden


@dataclass(frozen=True)
class Quality:
    """What one model does on one text."""

    ppl: float
    kl_to_teacher: float
    top1_agreement: float
    kl_stderr: float
    """Standard error of the mean KL over windows: neighbouring tokens are not independent."""
    scored_tokens: int
    windows: int

    def as_dict(self, prefix: str = "") -> dict[str, Any]:
        """For the report."""
        return {prefix + key: value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Reference:
    """The original on one text: windows [n, length], hidden states [n, length, width] and the head [vocab, width]."""

    windows: Tensor
    hidden: Tensor
    head: Tensor


@torch.no_grad()
def reference(model: Any, windows: Tensor, advance: Callable[[float], None]) -> Reference:
    """Run the original once over `windows` [n, length]."""
    states = []
    for window in windows:
        states.append(last_hidden(model, window[None].to(model.device))[0].cpu())
        advance(1)
    return Reference(windows, torch.stack(states), head_weight(model).detach().cpu())


@torch.no_grad()
def measure(model: Any, original: Reference, advance: Callable[[float], None]) -> Quality:
    """Compare `model` with the original on the original's windows."""
    head, original_head = head_weight(model).detach(), original.head.to(model.device)
    kl_means, nll, agree, scored = [], 0.0, 0, 0
    for window, state in zip(original.windows, original.hidden, strict=True):
        ids = window.to(model.device)
        hidden = last_hidden(model, ids[None])[0]
        tokens = divergence(hidden[:-1], head, state[:-1].to(model.device), original_head, ids[1:])
        kl_means.append(tokens.kl.double().mean().item())
        nll += tokens.nll_student.double().sum().item()
        agree += int(tokens.top1_equal.sum())
        scored += len(ids) - 1
        advance(1)
    mean = sum(kl_means) / len(kl_means)
    spread = sum((kl - mean) ** 2 for kl in kl_means) / max(1, len(kl_means) - 1)
    return Quality(
        ppl=math.exp(min(nll / scored, 700.0)),
        kl_to_teacher=max(0.0, mean),
        top1_agreement=agree / scored,
        kl_stderr=math.sqrt(spread / len(kl_means)),
        scored_tokens=scored,
        windows=len(kl_means),
    )
