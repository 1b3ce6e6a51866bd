"""The language-model loss of hidden states before the final norm, in pieces: all logits at once are never made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CHUNK = 128
"""Positions whose logits are in memory together."""


def losses(model: Any, normed: Tensor, ids: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Cross-entropy with the next token, piece by piece.

    Args:
        model: causal language model.
        normed: hidden states after the final norm, [length, width].
        ids: tokens [length].

    Yields:
        Which positions, and the sum of their losses.
    """
    head = model.get_output_embeddings()
    for start in range(0, len(ids) - 1, CHUNK):
        part = slice(start, min(start + CHUNK, len(ids) - 1))
        logits = head(normed[part]).float()
        labels = ids[part.start + 1 : part.stop + 1].to(logits.device)
        yield part, torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
