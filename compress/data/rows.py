"""Tokens that a model has no row of its embedding for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress.errors import UserError

if TYPE_CHECKING:
    import torch

    from compress.checkpoint import Checkpoint


def check_rows(ids: torch.Tensor, checkpoint: Checkpoint) -> None:
    """Refuse text with a token that `checkpoint` has no row for, which would end in an index out of range.

    Raises:
        UserError: naming the token.
    """
    stored = int(checkpoint.config.get_text_config().vocab_size)
    known, largest = checkpoint.rows or stored, int(ids.max())
    if largest >= known:
        raise UserError(
            f"the tokenizer gives token {largest} ({checkpoint.tokenizer().convert_ids_to_tokens(largest)!r}), and the "
            f"model's embedding has {known} rows.",
            "Take the tokenizer that belongs to the model, or enlarge it: model.resize_token_embeddings(...).",
        )
