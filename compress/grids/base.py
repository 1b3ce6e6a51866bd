"""The contract of a grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """A tensor on a grid: its codes and the *effective* scales (after double quantization, after rounding)."""

    parts: Mapping[str, Tensor]
    shape: torch.Size
    dtype: torch.dtype

    def bytes(self) -> int:
        """Storage of all parts."""
        return sum(part.numel() * part.element_size() for part in self.parts.values())


class Grid(Protocol):
    """A set of representable tensors."""

    def encode(self, weight: Tensor) -> Encoded:
        """Round to nearest on scales fitted to `weight` [out, in]."""
        ...

    def decode(self, encoded: Encoded) -> Tensor:
        """The tensor that `encoded` stands for, in its own shape and type."""
        ...

    def bits(self) -> float:
        """Stored bits per weight, scales included, for a large tensor."""
        ...
