"""Gradients of what a model says itself: the Fisher information of whatever they go through.

At every position a token is drawn from the model's own distribution. The gradients g of the log-probabilities of these
have E[g g^T] = the curvature of the KL between the model and itself disturbed there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from compress.errors import UserError


@torch.enable_grad()
def backward_from_drawn(model: Any, window: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Run `model` on `window` [length] and back from tokens that it draws; hooks see the gradients.

    Args:
        model: causal language model; its parameters need no gradient.
        window: tokens.
        generator: of the draws, on the CPU: the same ones on every device but for rounding.

    Returns:
        The embedded tokens [1, length, hidden] with their gradient, and the last hidden states, as large.

    Raises:
        UserError: nothing can be drawn, as the model overflows.
    """
    embedded: Tensor = model.get_input_embeddings()(window[None].to(model.device)).detach().requires_grad_(True)
    last: Tensor = model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(last[0]).float()
    if not bool(logits.isfinite().all()):
        raise UserError(
            "the model's logits are not finite on the calibration text: it overflows.",
            "Store its weights in bfloat16 or float32.",
        )
    drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
    torch.autograd.backward(cross_entropy(logits, drawn.to(logits.device), reduction="sum"))
    return embedded, last
