"""What a decoder is made of, as numbers: `Shape` (all sizes), `Widths` (the sizes pruning changes), `Axis` (one
dimension of a tensor, as coupled slices).

A *group* is the unit pruning removes, a coupled set of slices over several tensors. Four kinds cover every family here:

    layers   a transformer layer
    mlp      an MLP neuron: its rows in the input projections, its column in the output projection
    heads    a KV head with the query heads that read it (a plain head where every query head has its own KV head)
    hidden   a channel of the residual stream, through the whole model
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["layers", "mlp", "heads", "hidden"]
KINDS: tuple[Kind, ...] = ("layers", "mlp", "heads", "hidden")


@dataclass(frozen=True)
class Widths:
    """How many groups of each kind a model has."""

    layers: int
    mlp: int  # neurons per layer
    heads: int  # KV groups per layer, each with its query heads
    hidden: int  # residual channels

    def of(self, kind: Kind) -> int:
        """Number of groups of `kind`."""
        return {"layers": self.layers, "mlp": self.mlp, "heads": self.heads, "hidden": self.hidden}[kind]


@dataclass(frozen=True)
class Shape:
    """All sizes of a decoder, read from its config; widths are the same in every layer."""

    layers: int
    hidden: int  # channels of the residual stream
    heads: int  # query heads
    kv_heads: int  # key/value heads; equal to `heads` without grouped-query attention
    head_dim: int  # entries per head
    mlp: int  # neurons per layer
    vocab: int  # rows of the embedding
    tied: bool  # the head is the embedding

    @property
    def queries(self) -> int:
        """Query heads per KV head; query heads of one group are neighbours."""
        return self.heads // self.kv_heads

    @property
    def widths(self) -> Widths:
        """The sizes pruning can change, as counts of groups."""
        return Widths(layers=self.layers, mlp=self.mlp, heads=self.kv_heads, hidden=self.hidden)


@dataclass(frozen=True)
class Axis:
    """One dimension of a tensor, laid out as [blocks, groups of `kind`, unit].

    A fused [query | key | value] projection has three blocks; the rows of `q_proj` have one block whose unit is all
    query heads of a KV group. `kind=None` is a dimension that pruning leaves alone, of size `unit`.
    """

    kind: Kind | None
    blocks: int = 1
    unit: int = 1

    def size(self, widths: Widths) -> int:
        """Entries along this dimension in a model of these widths."""
        return self.blocks * self.unit * (1 if self.kind is None else widths.of(self.kind))


Axes = tuple[Axis, ...]  # of one tensor, a dimension each
HIDDEN, NEURON = Axis("hidden"), Axis("mlp")
