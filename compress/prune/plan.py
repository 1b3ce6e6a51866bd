"""What stays: `PruneTarget` (what the user asks for) -> `solve` -> widths -> `select` by scores -> `Plan`.

Depth, heads and residual channels come in coarse steps, MLP neurons in fine ones. So the coarse kinds are set first,
each to bear its share of the removal, and the MLP width is then solved so that the fraction kept comes closest to the
one asked for. That width beats depth at equal parameters is Minitron's finding (arXiv 2407.14679, section 4); depth is
the faster cut. The shares are the user's to set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from compress.arch.shape import KINDS, Kind, Shape, Widths
from compress.errors import UserError

if TYPE_CHECKING:  # a target is checked when configs are composed, long before torch is needed
    from torch import Tensor

Indices = tuple[int, ...]
Count = Callable[[Widths], int]  # non-embedding parameters of a model of these widths


@dataclass(frozen=True)
class PruneTarget:
    """How much stays. All fractions are fractions *kept*, in (0, 1].

    Attributes:
        keep: of the non-embedding parameters (layers and final norm). None: only the explicit fractions below count.
        layers, mlp, heads, hidden: of the groups of one kind; None leaves that kind to `keep` and `share`.
        share: the part of the removal each kind bears, relative to the others; a kind not named is not cut.
        multiple: MLP and residual widths are multiples of this (4-bit blocks and matrix tiles fit then).
        tolerance: how far the fraction reached may be from `keep` before the target is refused.

    Raises:
        UserError: fractions out of range, or nothing asked for.
    """

    keep: float | None = 0.85
    layers: float | None = None
    mlp: float | None = None
    heads: float | None = None
    hidden: float | None = None
    share: Mapping[Kind, float] = field(default_factory=lambda: {"layers": 0.5, "mlp": 0.5})
    multiple: int = 64
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        for name in ("keep", *KINDS):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UserError(
                    f"`{name}` is the fraction that stays, above 0 and at most 1; {value} was given.",
                    f"To remove 15%, give {name}=0.85.",
                )
        if self.keep is None and not self.explicit:
            raise UserError("Nothing says how much to keep.", "Give keep=0.85, or the fraction of one kind: mlp=0.8.")
        unknown = sorted(set(self.share) - set(KINDS))
        if unknown or any(not 0 <= part < float("inf") for part in self.share.values()):
            raise UserError(
                f"`share` says what part of the removal each of {', '.join(KINDS)} bears, each at least 0; "
                f"{dict(self.share)} was given.",
                "For example share.layers=0.5 share.mlp=0.5.",
            )
        if self.multiple < 1:
            raise UserError(f"`multiple` must be at least 1; {self.multiple} was given.", "The default is multiple=64.")

    @property
    def explicit(self) -> dict[Kind, float]:
        """The fractions kept that are stated outright."""
        stated = {kind: getattr(self, kind) for kind in KINDS}
        return {kind: fraction for kind, fraction in stated.items() if fraction is not None}


def solve(shape: Shape, target: PruneTarget, count: Count) -> Widths:
    """The widths that meet a target.

    Args:
        shape: of the dense model.
        target: what to keep.
        count: exact non-embedding parameters at given widths (`Architecture.non_embedding_parameters`).

    Raises:
        UserError: a fraction leaves nothing or does not fall on whole KV groups, or `keep` cannot be reached; says what
            is possible and what is nearest.
    """
    full = widths = shape.widths
    for kind, fraction in target.explicit.items():
        widths = _with(widths, kind, _explicit(kind, fraction, full.of(kind), target.multiple))
    if target.keep is None:
        return widths
    goal = target.keep * count(full)
    shares = {kind: target.share.get(kind, 0.0) for kind in KINDS if kind not in target.explicit}
    to_remove, whole = max(count(widths) - goal, 0.0), sum(shares.values())
    coarse: tuple[Kind, ...] = ("layers", "heads", "hidden")
    for kind in coarse:
        if shares.get(kind, 0.0) > 0:
            widths = _nearest(widths, kind, count(widths) - to_remove * shares[kind] / whole, target, count)
    if shares.get("mlp", 0.0) > 0:
        widths = _nearest(widths, "mlp", goal, target, count)
    reached = count(widths) / count(full)
    if abs(reached - target.keep) > target.tolerance or (target.keep < 1 and widths == full):
        raise _unreachable(target, full, widths, reached)
    return widths


MULTIPLES = (64, 32, 16, 8, 4, 2, 1)


def solve_coarsest(shape: Shape, target: PruneTarget, count: Count) -> Widths:
    """`solve` at the largest of `MULTIPLES` that meets the target: a small model may be too narrow for steps of 64.

    Raises:
        UserError: not even steps of one meet it.
    """
    for multiple in MULTIPLES:
        try:
            return solve(shape, replace(target, multiple=multiple), count)
        except UserError:
            if multiple == MULTIPLES[-1]:
                raise
    raise AssertionError("unreachable")


def _with(widths: Widths, kind: Kind, groups: int) -> Widths:
    return replace(widths, **{kind: groups})


def _choices(kind: Kind, full: int, multiple: int) -> list[int]:
    """The counts a kind can have, ascending: whole layers and KV groups, widths in multiples; or uncut."""
    step = multiple if kind in ("mlp", "hidden") else 1
    return [*range(step, full, step), full]


def _nearest(widths: Widths, kind: Kind, goal: float, target: PruneTarget, count: Count) -> Widths:
    """Set one kind so that the parameter count comes closest to `goal`; of two as close, the wider."""
    options = [_with(widths, kind, groups) for groups in _choices(kind, widths.of(kind), target.multiple)]
    return min(reversed(options), key=lambda option: abs(count(option) - goal))


def _explicit(kind: Kind, fraction: float, full: int, multiple: int) -> int:
    """Groups kept for a stated fraction: the nearest count that is possible."""
    choices, wanted = _choices(kind, full, multiple), fraction * full
    nearest = min(reversed(choices), key=lambda groups: abs(groups - wanted))
    shown = choices if len(choices) <= 12 else [*choices[:2], *choices[-3:]]
    possible = f"Possible: {', '.join(f'{groups / full:.3g}' for groups in shown)} (that is {shown} of {full})."
    if wanted < choices[0] / 2:
        raise UserError(f"{kind}={fraction} keeps {wanted:.1f} of {full} {_UNIT[kind]}: that leaves nothing.", possible)
    if nearest == full and fraction < 1:
        raise UserError(f"{kind}={fraction} rounds to all of the {full} {_UNIT[kind]}: nothing would be cut.", possible)
    if kind == "heads" and abs(nearest - wanted) > 0.1:  # a rounded fraction like 0.67 of 3 is meant as 2 groups
        raise UserError(
            f"heads={fraction} would keep {wanted:.2f} of {full} KV groups; query heads go with their group, whole.",
            possible,
        )
    return nearest


def _unreachable(target: PruneTarget, full: Widths, widths: Widths, reached: float) -> UserError:
    sizes = ", ".join(f"{widths.of(kind)} of {full.of(kind)} {_UNIT[kind]}" for kind in KINDS)
    hint = f"Give keep={reached:.3f}, a smaller `multiple` (now {target.multiple}), or another `share`."
    if target.explicit:
        stated = ", ".join(f"{kind}={fraction}" for kind, fraction in target.explicit.items())
        hint = f"{stated} already fix these kinds: leave out keep (keep=null) or some of them. {hint}"
    return UserError(f"keep={target.keep} cannot be reached; the nearest is {reached:.3f} ({sizes}).", hint)


_UNIT: dict[Kind, str] = {
    "layers": "layers",
    "mlp": "neurons",
    "heads": "KV groups",
    "hidden": "residual channels",
}


@dataclass(frozen=True)
class Plan:
    """Groups that stay, by their original indices, ascending.

    `mlp` and `heads` have an entry for every *original* layer (those of a dropped layer are unused), all of one length,
    since configs state one width for all layers.

    Raises:
        ValueError: not such a plan.
    """

    layers: Indices
    mlp: tuple[Indices, ...]  # neurons
    heads: tuple[Indices, ...]  # KV groups
    hidden: Indices  # residual channels, one choice for the whole model

    def __post_init__(self) -> None:
        for kept in (self.layers, self.hidden, *self.mlp, *self.heads):
            if not kept or kept[0] < 0 or any(low >= high for low, high in pairwise(kept)):
                raise ValueError(f"kept indices must be ascending, at least one: {kept[:8]}...")
        if len(self.mlp) != len(self.heads) or self.layers[-1] >= len(self.mlp):
            raise ValueError(f"layers {self.layers} of {len(self.mlp)} (mlp) and {len(self.heads)} (heads)")
        if len({len(kept) for kept in self.mlp}) > 1 or len({len(kept) for kept in self.heads}) > 1:
            raise ValueError("widths must be uniform across layers")

    @classmethod
    def full(cls, shape: Shape) -> Plan:
        """The plan that keeps everything."""
        mlp, heads = tuple(range(shape.mlp)), tuple(range(shape.kv_heads))
        layers, hidden = tuple(range(shape.layers)), tuple(range(shape.hidden))
        return cls(layers, (mlp,) * shape.layers, (heads,) * shape.layers, hidden)

    @property
    def widths(self) -> Widths:
        """How many groups of each kind stay."""
        return Widths(len(self.layers), len(self.mlp[0]), len(self.heads[0]), len(self.hidden))

    def kept(self, kind: Kind, layer: int | None) -> Indices:
        """Kept groups of `kind` in an original layer (None: outside the layers)."""
        if kind == "hidden":
            return self.hidden
        if kind == "layers":
            return self.layers
        if layer is None:
            raise ValueError(f"{kind} groups exist within a layer only")
        return self.mlp[layer] if kind == "mlp" else self.heads[layer]

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
        if not isinstance(data, dict) or set(data) != {"layers", "mlp", "heads", "hidden"}:
            raise ValueError("not a plan: expected an object of layers, mlp, heads and hidden")
        nested = {kind: tuple(tuple(kept) for kept in data[kind]) for kind in ("mlp", "heads")}
        return cls(layers=tuple(data["layers"]), hidden=tuple(data["hidden"]), **nested)


@dataclass(frozen=True)
class Scores:
    """Importance of every group, the higher the more important. None for a kind that is not cut."""

    layers: Tensor | None = None  # [layers]
    mlp: Tensor | None = None  # [layers, mlp]
    heads: Tensor | None = None  # [layers, KV groups]
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

    return Plan(
        layers=top("layers", scores.layers)[0],
        mlp=top("mlp", scores.mlp, shape.layers),
        heads=top("heads", scores.heads, shape.layers),
        hidden=top("hidden", scores.hidden)[0],
    )


def _top(score: Tensor, keep: int) -> Indices:
    order = score.sort(descending=True, stable=True).indices  # stable: ties go to the lower index
    return tuple(sorted(order[:keep].tolist()))
