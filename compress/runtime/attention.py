"""Causal attention as plain matrix products, for long windows in half precision on a CPU.

Queries go in blocks against all keys before them; query heads that share a key head are one product. Twice as fast as
torch's fused kernel there from 512 tokens on, at the price of scores that are rounded to the type of the activations
once more, as transformers' own eager attention rounds them: good enough for statistics, not used to measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

NAME = "compress_products"
BLOCK = 128
"""Queries of one product."""
SHORTEST = 512
"""Tokens of a window from which it is faster."""


def causal_products(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """softmax(scale Q K^T) V, every position seeing those up to its own.

    Args:
        query: [batch, heads, length, width].
        key: [batch, groups, length, width]; each group serves heads / groups heads in a row.
        value: [batch, groups, length, width].
        scale: 1 / sqrt(width) by default.

    Returns:
        [batch, heads, length, width].
    """
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    q = (query * (width**-0.5 if scale is None else scale)).reshape(batch * groups, heads // groups, length, width)
    k, v = (x.reshape(batch * groups, length, x.shape[-1]) for x in (key, value))
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    ahead = torch.full((BLOCK, BLOCK), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    for first in range(0, length, BLOCK):
        last = min(first + BLOCK, length)
        rows = q[:, :, first:last]
        scores = torch.bmm(rows.flatten(1, 2), k[:, :last].transpose(1, 2)).view(*rows.shape[:3], last)
        scores[..., first:] += ahead[: last - first, : last - first]
        weights = scores.softmax(-1).flatten(1, 2)
        out[:, :, first:last] = torch.bmm(weights, v[:, :last]).view(*rows.shape[:3], -1)
    return out.view(batch, heads, length, -1)


def _forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """What transformers calls; anything but plain causal attention goes to torch."""
    if attention_mask is None and query.shape[2] == key.shape[2]:
        found = causal_products(query, key, value, options.get("scaling"))
        return found.transpose(1, 2).contiguous(), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    out: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0]
    return out, None


@contextmanager
def faster_attention(config: Any, hidden: Tensor) -> Iterator[None]:
    """Inside, the layers of a model with this config attend by products, where that is faster for `hidden`
    [batch, length, width]. No gradients."""
    half = hidden.dtype in (torch.bfloat16, torch.float16)
    before = config._attn_implementation
    if before != "sdpa" or hidden.device.type != "cpu" or not half or hidden.shape[1] < SHORTEST:
        yield
        return
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _forward)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
