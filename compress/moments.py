"""Second moments of activations: in half the work, and without leaving the range of half precision.

Calibrated quantization and compensation after pruning both come down to them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

COLUMNS = 256
"""Of a second moment, added up together."""
SINKS = 4
"""Positions at the start of a window whose activations may be massive (arXiv 2402.17762)."""


def sum_of_products(left: Sequence[Tensor], right: Sequence[Tensor], first_token: float = 1.0) -> Tensor:
    """Mean of l r^T over tokens, fp32 [left width, right width].

    Args:
        left: batches [windows, length, left width].
        right: batches [windows, length, right width].
        first_token: weight of each window's first token.
    """
    total = torch.zeros(left[0].shape[-1], right[0].shape[-1], device=left[0].device)
    count = sum(add_products(total, x, y, first_token) for x, y in zip(left, right, strict=True))
    return (mirrored(total) if left is right else total) / count


def add_products(total: Tensor, x: Tensor, y: Tensor, first_token: float = 1.0) -> float:
    """Add the sum of x y^T over tokens to `total`; where y is x, only what is not below the diagonal is right.

    In the type of the activations (bf16 for fp16, whose range such sums leave), but for each window's first positions:
    their massive activations would drown what half precision can hold, and the other sums with them.

    Args:
        total: fp32 [x width, y width].
        x: [windows, length, x width].
        y: [windows, length, y width].
        first_token: weight of each window's first token.

    Returns:
        The weight of all tokens.
    """
    same = x is y
    weights = torch.ones(SINKS, device=total.device)
    weights[0] = first_token
    head = x[:, :SINKS].float() * weights[: x.shape[1], None]
    total.addmm_(head.flatten(0, 1).t(), y[:, :SINKS].float().flatten(0, 1))
    if x.shape[1] > SINKS:
        x_rest, y_rest = (_ranged(z[:, SINKS:].flatten(0, 1)) for z in (x, y))
        if same:
            _add_upper(total, x_rest)
        else:
            total += x_rest.t() @ y_rest.to(x_rest.dtype)
    return x.shape[0] * (x.shape[1] - 1 + first_token)


def mirrored(total: Tensor) -> Tensor:
    """The symmetric matrix of which `total` has the part that is not below the diagonal."""
    return total.triu() + total.triu(1).t()


def _ranged(rows: Tensor) -> Tensor:
    return rows.bfloat16() if rows.dtype is torch.float16 else rows


def _add_upper(total: Tensor, rows: Tensor) -> None:
    """Add the part of rows^T rows that is not below its diagonal, block by block: little more than half the work."""
    for first in range(0, len(total), COLUMNS):
        part = slice(first, min(first + COLUMNS, len(total)))
        total[part, first:] += rows[:, part].t() @ rows[:, first:]
