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
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from compress_kernels import divergence
from torch import Tensor

from compress.runtime.loading import slow_half
from compress.train.module import head_weight, last_hidden

ROWS = 128
"""Positions whose logits are compared at a time."""


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
    head = head_weight(model).detach()
    states = (last_hidden(model, window[None].to(head.device))[0] for window in original.windows)
    return _compared(states, head, original, advance)


def measure_itself(original: Reference, device: torch.device, advance: Callable[[float], None]) -> Quality:
    """The original beside itself: what `measure` says of it, without running it once more."""
    states = (state.to(device) for state in original.hidden)
    return _compared(states, original.head.to(device), original, advance)


def _compared(states: Iterable[Tensor], head: Tensor, original: Reference, advance: Callable[[float], None]) -> Quality:
    """Hidden states [length, width] of every window, and the head that reads them, beside the original's."""
    tally, original_head = Tally(), original.head.to(head.device)
    for window, hidden, state in zip(original.windows, states, original.hidden, strict=True):
        said = window[1:].to(head.device)
        tokens = divergence(hidden[:-1], head, state[:-1].to(head.device), original_head, said)
        tally.add(tokens.kl, tokens.nll_student, tokens.top1_equal)
        advance(1)
    return tally.quality()


@torch.no_grad()
def measure_logits(
    logits: Callable[[Tensor], Tensor], original: Reference, advance: Callable[[float], None]
) -> Quality:
    """The same for whatever turns tokens [length] into logits [length, vocab]."""
    tally = Tally()
    head = original.head.float() if slow_half(original.head.dtype, "cpu") else original.head
    for window, state in zip(original.windows, original.hidden, strict=True):
        found = logits(window)[:-1]
        parts = []
        for rows in range(0, len(found), ROWS):
            student = found[rows : rows + ROWS].float().log_softmax(-1)
            teacher = (state[rows : rows + len(student)].to(head.dtype) @ head.t()).float().log_softmax(-1)
            kl = (teacher.exp() * (teacher - student)).sum(-1)
            said = student.gather(1, window[rows + 1 : rows + 1 + len(student), None])[:, 0]
            parts.append((kl, -said, student.argmax(-1) == teacher.argmax(-1)))
        tally.add(*(torch.cat(column) for column in zip(*parts, strict=True)))
        advance(1)
    return tally.quality()


@dataclass
class Tally:
    """Adds windows up."""

    kl_means: list[float] = field(default_factory=list)
    nll: float = 0.0
    agree: int = 0
    scored: int = 0

    def add(self, kl: Tensor, nll: Tensor, agree: Tensor) -> None:
        """Of every scored token of one window."""
        self.kl_means.append(kl.double().mean().item())
        self.nll += nll.double().sum().item()
        self.agree += int(agree.sum())
        self.scored += len(kl)

    def quality(self) -> Quality:
        """Means over everything added."""
        mean = sum(self.kl_means) / len(self.kl_means)
        spread = sum((kl - mean) ** 2 for kl in self.kl_means) / max(1, len(self.kl_means) - 1)
        return Quality(
            ppl=math.exp(min(self.nll / self.scored, 700.0)),
            kl_to_teacher=mean if math.isnan(mean) else max(0.0, mean),
            top1_agreement=self.agree / self.scored,
            kl_stderr=math.sqrt(spread / len(self.kl_means)),
            scored_tokens=self.scored,
            windows=len(self.kl_means),
        )
