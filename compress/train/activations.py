"""Activation checkpointing: keep a layer's input, compute the layer again backward (Chen et al., arXiv 1604.06174)."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def decoder_layers(model: nn.Module) -> list[Any]:
    """The layers of a transformers model."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def checkpoint_activations(model: nn.Module, on: bool) -> None:
    """Turn it on or off, in place.

    transformers' layers checkpoint themselves while they train. Here the layer alone is said to train: dropout, in the
    modules below it, stays off.
    """
    for layer in decoder_layers(model):
        layer.gradient_checkpointing = on
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        layer.training = on
