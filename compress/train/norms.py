"""The RMS norms of a model on our kernel while it trains or teaches: one pass instead of six and three casts."""

from __future__ import annotations

from typing import Any

import torch
from compress_kernels import rms_norm
from torch import Tensor, nn


class FusedRMSNorm(nn.Module):
    """In the place of a norm of transformers, with its own weight; under autocast the result has autocast's type."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight: nn.Parameter = norm.weight
        self.epsilon: float = norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same."""
        kind = x.device.type
        dtype = torch.promote_types(x.dtype, self.weight.dtype)
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        return rms_norm(x, self.weight, self.epsilon, dtype)


def fuse_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Put `FusedRMSNorm` in the place of every RMS norm; by their paths, those that were there."""
    found = {
        path: module
        for path, module in model.named_modules()
        # Gemma's, whose weights are counted from one, name their epsilon otherwise
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")
    }
    put_modules(model, {path: FusedRMSNorm(module) for path, module in found.items()})
    return found


def put_modules(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    """Set submodules by their paths."""
    for path, module in modules.items():
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, module)
