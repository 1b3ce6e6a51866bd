"""Heads over the same tokens, chunk by chunk: the products that the losses on logits are made of.

A chunk's logits live in two reused buffers of WORKSPACE bytes together. A head in another dtype than the one computed
with (autocast over fp32 weights) is cast in slices, so that no whole copy of it ever exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

WORKSPACE = 32 * 2**20
"""Bytes for one chunk's logits, of all models together."""
SLICE = 2**20
"""Elements of a head that are cast, or of its gradient that are formed, at a time."""


Side = tuple[Tensor, Tensor]
"""Hidden states [T, D] and head [V, D] of one model."""


class Part(NamedTuple):
    """tokens: the rows it stands for; hidden: the first side's states [R, D] as computed with; logits: [R, V] of each
    side."""

    tokens: slice
    hidden: Tensor
    logits: list[Tensor]


class Chunk(NamedTuple):
    """tokens: the rows it stands for; hidden: the student's states [R, D] as computed with; the logits [R, V] of
    both."""

    tokens: slice
    hidden: Tensor
    student: Tensor
    teacher: Tensor


def compute_dtype(hidden: Tensor, head: Tensor) -> torch.dtype:
    """Autocast's dtype if it is on, else the operands'; fp16 is computed in fp32 on a CPU."""
    kind = hidden.device.type
    dtype = torch.promote_types(hidden.dtype, head.dtype)
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    return torch.float32 if kind == "cpu" and dtype == torch.float16 else dtype


def _slices(head: Tensor) -> Iterator[slice]:
    step = max(1, SLICE // head.shape[1])
    return (slice(begin, min(begin + step, head.shape[0])) for begin in range(0, head.shape[0], step))


def project(hidden: Tensor, head: Tensor, out: Tensor) -> None:
    """out[R, V] = hidden[R, D] @ head[V, D]^T in out's dtype."""
    if head.dtype == out.dtype:
        torch.mm(hidden, head.t(), out=out)
        return
    for part in _slices(head):
        out[:, part] = hidden @ head[part].to(out.dtype).t()


def pull_back(gradient: Tensor, head: Tensor) -> Tensor:
    """gradient[R, V] @ head[V, D]."""
    if head.dtype == gradient.dtype:
        return gradient @ head
    total = gradient.new_zeros((gradient.shape[0], head.shape[1]), dtype=torch.float32)
    for part in _slices(head):
        total += gradient[:, part] @ head[part].to(gradient.dtype)
    return total


def accumulate(gradient: Tensor, hidden: Tensor, total: Tensor) -> None:
    """total[V, D] += gradient[R, V]^T @ hidden[R, D]."""
    if total.dtype == gradient.dtype:
        total.addmm_(gradient.t(), hidden)
        return
    for part in _slices(total):
        total[part] += gradient[:, part].t() @ hidden


def chunked_logits(
    student_hidden: Tensor, student_head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor
) -> Iterator[Chunk]:
    """The logits of two models, in chunks of tokens; a chunk's buffers are its successor's."""
    for part in chunked((student_hidden, student_head), (teacher_hidden, teacher_head)):
        yield Chunk(part.tokens, part.hidden, part.logits[0], part.logits[1])


def chunked(*sides: Side) -> Iterator[Part]:
    """The logits of [T, D] hidden states under [V, D] heads, in chunks of tokens; a chunk's buffers are its
    successor's.

    The dtype (autocast) is settled at the first chunk; the products run without autocast, in exactly that dtype.
    """
    dtypes = [compute_dtype(hidden, head) for hidden, head in sides]
    (tokens, _), vocab, device = sides[0][0].shape, sides[0][1].shape[0], sides[0][0].device
    most = max(1, WORKSPACE // (vocab * sum(dtype.itemsize for dtype in dtypes)))
    count = -(-tokens // most)
    rows = -(-tokens // max(1, count))  # even chunks: a short last one would run its products slower
    buffers = [torch.empty((rows, vocab), dtype=dtype, device=device) for dtype in dtypes]
    for begin in range(0, tokens, max(1, rows)):
        part = slice(begin, min(begin + rows, tokens))
        states = [hidden[part].to(dtype) for (hidden, _), dtype in zip(sides, dtypes, strict=True)]
        logits = [buffer[: part.stop - part.start] for buffer in buffers]
        with torch.autocast(device.type, enabled=False):
            for hidden, (_, head), out in zip(states, sides, logits, strict=True):
                project(hidden, head, out)
        yield Part(part, states[0], logits)
