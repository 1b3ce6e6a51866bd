"""A linear layer that computes as its quantized form will, with straight-through gradients to fp32 weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from compress.grids.int8 import fake_quantize


class FakeInt8Linear(nn.Module):
    """Per-channel INT8 weights and per-token INT8 activations, both by straight-through estimation.

    Wraps the layer it stands for and shares its parameters, so that they train in place. `transposed` is for GPT-2's
    Conv1D, which holds [in, out].
    """

    def __init__(self, inner: Any, transposed: bool) -> None:
        super().__init__()
        self.inner = inner
        self.transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        weight = self.inner.weight.t() if self.transposed else self.inner.weight
        return nn.functional.linear(fake_quantize(x), fake_quantize(weight), self.inner.bias)


def put_on_grid(model: nn.Module, paths: Iterable[str], transposed: bool) -> None:
    """Wrap the layers at `paths`."""
    for path in paths:
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, FakeInt8Linear(model.get_submodule(path), transposed))


def take_off_grid(model: nn.Module, paths: Iterable[str]) -> None:
    """Undo `put_on_grid`."""
    for path in paths:
        parent, _, last = path.rpartition(".")
        wrapped: Any = model.get_submodule(path)
        setattr(model.get_submodule(parent), last, wrapped.inner)
