"""What a decoder is made of, as numbers: `Shape` (all sizes), `Widths` (the sizes pruning changes), `Axis` (one
dimension of a tensor, as coupled slices).

A *group* is the unit pruning removes, a coupled set of slices over several tensors. Five kinds cover every family here:

    layers   a transformer layer
    mlp      an MLP neuron: its rows in the input projections, its column in the output projection
    heads    a KV head with the query heads that read it (a plain head where every query head has its own KV head)
    query_heads   a single query head, as many of them in every KV group; its KV head stays
    hidden   a channel of the residual stream, through the whole model
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["layers", "mlp", "heads", "query_heads", "hidden"]
KINDS: tuple[Kind, ...] = ("layers", "mlp", "heads", "query_heads", "hidden")


@dataclass(frozen=True)
class Widths:
    """How many groups of each kind a model has."""

    layers: int
    mlp: int  # neurons per layer
    heads: int  # KV groups per layer, each with its query heads
    hidden: int  # residual channels
    query_heads: int  # query heads per KV group

    def of(self, kind: Kind) -> int:
        """Number of groups of `kind`; of query heads those of one KV group."""
        count: int = getattr(self, kind)
        return count

    @property
    def all_query_heads(self) -> int:
        """Query heads per layer."""
        return self.heads * self.query_heads


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
    hidden_by_heads: bool = False  # transformers refuses residual widths that are no multiple of the query heads

    @property
    def queries(self) -> int:
        """Query heads per KV head; query heads of one group are neighbours."""
        return self.heads // self.kv_heads

    @property
    def widths(self) -> Widths:
        """The sizes pruning can change, as counts of groups."""
        return Widths(self.layers, self.mlp, self.kv_heads, self.hidden, self.queries)


@dataclass(frozen=True)
class Axis:
    """One dimension of a tensor, laid out as [blocks, groups of `kind`, unit].

    A fused [query | key | value] projection has three blocks; the rows of `q_proj` have one block of all query heads,
    group after group. `kind=None` is a dimension that pruning leaves alone, of size `unit`.
    """

    kind: Kind | None
    blocks: int = 1
    unit: int = 1

    def size(self, widths: Widths) -> int:
        """Entries along this dimension in a model of these widths."""
        return self.blocks * self.unit * self.groups(widths)

    def groups(self, widths: Widths) -> int:
        """Groups along this dimension."""
        if self.kind == "query_heads":
            return widths.all_query_heads
        return 1 if self.kind is None else widths.of(self.kind)


Axes = tuple[Axis, ...]  # of one tensor, a dimension each
HIDDEN, NEURON = Axis("hidden"), Axis("mlp")
