"""What stays: `select` keeps the best-scored groups of the widths asked for, `Plan` says which they are."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from compress.arch.shape import KINDS, Kind, Shape, Widths

if TYPE_CHECKING:
    from torch import Tensor

Indices = tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Groups that stay, by their original indices, ascending.

    `mlp`, `heads` and `query_heads` have an entry for every *original* layer (those of a dropped layer are unused), all
    of one length, since configs state one width for all layers. Query heads are those of the KV groups that stay, as
    many of each.

    Raises:
        ValueError: not such a plan.
    """

    layers: Indices
    mlp: tuple[Indices, ...]  # neurons
    heads: tuple[Indices, ...]  # KV groups
    query_heads: tuple[Indices, ...]
    hidden: Indices  # residual channels, one choice for the whole model

    def __post_init__(self) -> None:
        per_layer = (self.mlp, self.heads, self.query_heads)
        for kept in (self.layers, self.hidden, *(kept for rows in per_layer for kept in rows)):
            if not kept or kept[0] < 0 or any(low >= high for low, high in pairwise(kept)):
                raise ValueError(f"kept indices must be ascending, at least one: {kept[:8]}...")
        if len({len(rows) for rows in per_layer}) > 1 or self.layers[-1] >= len(self.mlp):
            raise ValueError(f"layers {self.layers} of {[len(rows) for rows in per_layer]} (mlp, heads, query heads)")
        if any(len({len(kept) for kept in rows}) > 1 for rows in per_layer):
            raise ValueError("widths must be uniform across layers")
        if len(self.query_heads[0]) % len(self.heads[0]):
            raise ValueError(f"{len(self.query_heads[0])} query heads for {len(self.heads[0])} KV groups")

    @classmethod
    def full(cls, shape: Shape) -> Plan:
        """The plan that keeps everything."""
        mlp, heads = tuple(range(shape.mlp)), tuple(range(shape.kv_heads))
        layers, hidden, queries = tuple(range(shape.layers)), tuple(range(shape.hidden)), tuple(range(shape.heads))
        return cls(layers, (mlp,) * shape.layers, (heads,) * shape.layers, (queries,) * shape.layers, hidden)

    @property
    def widths(self) -> Widths:
        """How many groups of each kind stay."""
        heads = len(self.heads[0])
        return Widths(len(self.layers), len(self.mlp[0]), heads, len(self.hidden), len(self.query_heads[0]) // heads)

    def kept(self, kind: Kind, layer: int | None) -> Indices:
        """Kept groups of `kind` in an original layer (None: outside the layers)."""
        if kind == "hidden":
            return self.hidden
        if kind == "layers":
            return self.layers
        if layer is None:
            raise ValueError(f"{kind} groups exist within a layer only")
        rows: tuple[Indices, ...] = getattr(self, kind)
        return rows[layer]

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            ValueError: the text is not a plan.
        """
        data = json.loads(text)
        if not isinstance(data, dict) or set(data) != set(KINDS):
            raise ValueError(f"not a plan: expected an object of {', '.join(KINDS)}")
        nested = {kind: tuple(tuple(kept) for kept in data[kind]) for kind in ("mlp", "heads", "query_heads")}
        return cls(layers=tuple(data["layers"]), hidden=tuple(data["hidden"]), **nested)


@dataclass(frozen=True)
class Scores:
    """Importance of every group, the higher the more important. None for a kind that is not cut."""

    layers: Tensor | None = None  # [layers]
    mlp: Tensor | None = None  # [layers, mlp]
    heads: Tensor | None = None  # [layers, KV groups]
    query_heads: Tensor | None = None  # [layers, all query heads]
    hidden: Tensor | None = None  # [hidden]


def select(scores: Scores, shape: Shape, widths: Widths) -> Plan:
    """Keep the most important groups of each kind, layer by layer; of equals, those of lower index.

    Args:
        scores: importance; a kind whose width stays may be None.
        shape: of the dense model.
        widths: how many groups of each kind stay.

    Raises:
        ValueError: scores missing for a kind that is cut, of another shape than the model, or not finite.
    """
    full = shape.widths

    def top(kind: Kind, score: Tensor | None, *per_layer: int) -> tuple[Indices, ...]:
        groups, keep = full.of(kind), widths.of(kind)
        rows = per_layer[0] if per_layer else 1
        if keep == groups:
            return (tuple(range(groups)),) * rows
        if score is None or score.shape != (*per_layer, groups) or not score.isfinite().all():
            given = "none" if score is None else f"shape {list(score.shape)}"
            raise ValueError(f"{kind} needs finite scores of shape {[*per_layer, groups]}; given: {given}")
        return tuple(_top(row, keep) for row in score.reshape(rows, groups))

    heads = top("heads", scores.heads, shape.layers)
    return Plan(
        layers=top("layers", scores.layers)[0],
        mlp=top("mlp", scores.mlp, shape.layers),
        heads=heads,
        query_heads=_query_heads(scores.query_heads, heads, shape, widths.query_heads),
        hidden=top("hidden", scores.hidden)[0],
    )


def _query_heads(score: Tensor | None, heads: tuple[Indices, ...], shape: Shape, keep: int) -> tuple[Indices, ...]:
    """The most important query heads of every KV group that stays, as many of each."""
    if keep == shape.queries:
        every = range(keep)
        return tuple(tuple(group * keep + query for group in kept for query in every) for kept in heads)
    if score is None or score.shape != (shape.layers, shape.heads) or not score.isfinite().all():
        raise ValueError(f"query heads need finite scores of shape {[shape.layers, shape.heads]}")
    grouped = score.view(shape.layers, shape.kv_heads, shape.queries)
    return tuple(
        tuple(group * shape.queries + query for group in kept for query in _top(grouped[layer, group], keep))
        for layer, kept in enumerate(heads)
    )


def _top(score: Tensor, keep: int) -> Indices:
    order = score.sort(descending=True, stable=True).indices  # stable: ties go to the lower index
    return tuple(sorted(order[:keep].tolist()))


def prefix(shape: Shape, widths: Widths) -> Plan:
    """The plan that keeps the first groups of everything: for sizes and times, where it does not matter which stay."""
    queries = tuple(
        group * shape.queries + query for group in range(widths.heads) for query in range(widths.query_heads)
    )
    return Plan(
        layers=tuple(range(widths.layers)),
        mlp=(tuple(range(widths.mlp)),) * shape.layers,
        heads=(tuple(range(widths.heads)),) * shape.layers,
        query_heads=(queries,) * shape.layers,
        hidden=tuple(range(widths.hidden)),
    )


def compose(first: Plan, then: Plan) -> Plan:
    """One plan for two cuts, the second of what the first has left.

    Args:
        first: of the dense model.
        then: of the model that `first` leaves.

    Returns:
        The plan that makes the same model from the dense one.
    """
    left = {layer: index for index, layer in enumerate(first.layers)}

    def rows(kind: Kind) -> tuple[Indices, ...]:
        size = len(then.kept(kind, 0))
        return tuple(
            tuple(kept[i] for i in then.kept(kind, left[layer])) if layer in left else kept[:size]
            for layer, kept in enumerate(first.kept(kind, layer) for layer in range(len(first.mlp)))
        )

    return Plan(
        layers=tuple(first.layers[i] for i in then.layers),
        mlp=rows("mlp"),
        heads=rows("heads"),
        query_heads=rows("query_heads"),
        hidden=tuple(first.hidden[i] for i in then.hidden),
    )
