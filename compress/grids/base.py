"""The contract of a grid: which tensors can be written down, and how.

On every grid a weight is `scale * level + offset`: levels come from a small fixed table, scale and offset are shared
by a block of neighbours in a row. A grid is pure: it says where the table's levels are, which scales can be stored, and
how levels and scales are packed. How to choose them is an algorithm's business, and every algorithm works on any grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Scales:
    """Scales that can be stored: what decoding will multiply with and add."""

    scale: Tensor
    """fp32 [rows, blocks]; may be negative (GGUF)."""
    offset: Tensor | None = None
    """fp32 [rows, blocks], or None on a symmetric grid."""
    stored: Mapping[str, Tensor] = field(default_factory=dict)
    """Parts that `scale` was read back from, where it is stored in another form (double quantization)."""

    def to(self, device: torch.device | str) -> Scales:
        """The same on another device."""
        offset = None if self.offset is None else self.offset.to(device)
        return Scales(self.scale.to(device), offset, {name: part.to(device) for name, part in self.stored.items()})


class Grid(Protocol):
    """A set of representable tensors."""

    @property
    def name(self) -> str:
        """As `grid_named` understands it."""
        ...

    @property
    def block(self) -> int:
        """Weights along a row that share a scale; 0 for the whole row."""
        ...

    @property
    def levels(self) -> Tensor:
        """The table, ascending, fp32 [n]."""
        ...

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the runtimes of this grid can multiply with a weight [out, in] of this shape."""
        ...

    def start(self, weight: Tensor) -> Scales:
        """The scales that the format's own quantizer takes for `weight` [rows, columns]."""
        ...

    def settle(self, scale: Tensor, offset: Tensor | None) -> Scales:
        """The nearest scales [rows, blocks] that can be stored."""
        ...

    def pack(self, levels: Tensor, scales: Scales, dtype: torch.dtype) -> Encoded:
        """Store levels [rows, columns] (values of the table) with their scales."""
        ...

    def unpack(self, encoded: Encoded) -> tuple[Tensor, Scales]:
        """Levels [rows, columns] in fp32 and scales of what `pack` stored."""
        ...

    def encode(self, weight: Tensor) -> Encoded:
        """Round to nearest, bit for bit as the format's own quantizer does."""
        ...

    def decode(self, encoded: Encoded) -> Tensor:
        """The tensor that `encoded` stands for, in its own shape and type."""
        ...

    def bits(self) -> float:
        """Stored bits per weight, scales included, for a large tensor."""
        ...
