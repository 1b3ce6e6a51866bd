"""What the losses on logits share: gradients made chunk by chunk in the forward pass, and only scaled backward.

A producer yields, for a chunk of tokens, the sums of the loss and the logits' gradient; the two products that carry it
to hidden states and head are done here. See fused_kl.py for the derivation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from compress_kernels.chunks import accumulate, pull_back


class FusedLoss(NamedTuple):
    """total: scalar that carries the gradient; kl, ce: detached means per valid token. kl is the forward KL at this
    temperature, without weight and T^2, whatever the terms are: the same measure for all of them."""

    total: Tensor
    kl: Tensor
    ce: Tensor


class Done(NamedTuple):
    """One chunk: the tokens it stands for, the student's states [R, D] as computed with, the gradient to its logits
    [R, V], and fp64 sums over its rows of the forward KL, the weighted divergences and the cross-entropy."""

    tokens: slice
    hidden: Tensor
    gradient: Tensor
    sums: Tensor


Producer = Callable[[Tensor, Tensor, bool], Iterator[Done]]
"""(student hidden states, student head, whether gradients are wanted) -> the chunks."""


@dataclass(frozen=True)
class _Loss:
    producer: Producer
    ce: float
    hidden_gradient: bool
    head_gradient: bool


class _ChunkedLoss(torch.autograd.Function):
    """Sums over tokens forward; the gradients are made then and only scaled backward."""

    @staticmethod
    def forward(ctx: Any, student_hidden: Tensor, student_head: Tensor, loss: _Loss) -> tuple[Tensor, Tensor]:
        want = loss.hidden_gradient or loss.head_gradient
        hidden_gradient = torch.empty_like(student_hidden) if loss.hidden_gradient else None
        head_gradient = torch.zeros_like(student_head) if loss.head_gradient else None
        sums = torch.zeros(3, dtype=torch.float64, device=student_hidden.device)
        for done in loss.producer(student_hidden, student_head, want):
            sums += done.sums
            with torch.autocast(student_hidden.device.type, enabled=False):
                if hidden_gradient is not None:
                    hidden_gradient[done.tokens] = pull_back(done.gradient, student_head)
                if head_gradient is not None:
                    accumulate(done.gradient, done.hidden, head_gradient)
        ctx.gradients = hidden_gradient, head_gradient
        ctx.set_materialize_grads(False)
        kl, weighted, ce = sums.unbind()
        reported = torch.stack([kl, ce]).float()
        ctx.mark_non_differentiable(reported)
        return (weighted + loss.ce * ce).float(), reported

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("fused_kl's gradient is made once, in its forward pass: call it again to backward again")
        hidden_gradient, head_gradient = ctx.gradients
        ctx.gradients = None  # lets autograd keep the buffers as .grad instead of copying them
        if upstream[0] is None:
            return None, None, None
        for gradient in (hidden_gradient, head_gradient):
            if gradient is not None:
                gradient.mul_(upstream[0].to(gradient.device))
        return hidden_gradient, head_gradient, None


def chunked_loss(student_hidden: Tensor, student_head: Tensor, producer: Producer, ce: float) -> FusedLoss:
    """Mean over the tokens of what `producer` makes of them, with gradients to whichever of the two requires one."""
    graph = torch.is_grad_enabled()
    wanted = graph and student_hidden.requires_grad, graph and student_head.requires_grad
    loss = _Loss(producer, ce, *wanted)
    total, sums = _ChunkedLoss.apply(student_hidden, student_head, loss)  # type: ignore[no-untyped-call]
    count = max(1, student_hidden.shape[0])
    return FusedLoss(total / count, sums[0] / count, sums[1] / count)


def check_tokens(name: str, given: Tensor | None, tokens: int) -> None:
    """Raises ValueError unless `given` is None or has one entry per token."""
    if given is not None and given.shape != (tokens,):
        raise ValueError(f"{name} has shape {tuple(given.shape)}: expected ({tokens},), one per token")


def valid_tokens(
    hidden: Tensor, labels: Tensor | None, mask: Tensor | None, temperature: float, ce: float
) -> Tensor | None:
    """Indices of the tokens that count, or None if all do: those the mask keeps and whose label is not negative.

    Raises ValueError for shapes that do not fit, temperature <= 0, or ce without labels.
    """
    tokens = hidden.shape[0]
    check_tokens("labels", labels, tokens)
    check_tokens("mask", mask, tokens)
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}: expected a number above 0")
    if labels is None and ce != 0:
        raise ValueError(f"ce is {ce} but there are no labels: pass labels, or ce=0")
    valid = torch.ones(tokens, dtype=torch.bool, device=hidden.device) if mask is None else mask.bool()
    if labels is not None:
        valid = valid & (labels >= 0)
    return None if bool(valid.all()) else valid.nonzero()[:, 0]
