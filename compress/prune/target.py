"""How wide the pruned model is: `PruneTarget` (what the user asks for) -> `solve` -> `Widths`.

Depth, heads and residual channels come in coarse steps, MLP neurons in fine ones. So the coarse kinds are set first,
each to bear its share of the removal, and the MLP width is then solved so that the fraction kept comes closest to the
one asked for. What is counted (parameters, bytes, time) is the caller's choice. That width beats depth at equal
parameters is Minitron's finding (arXiv 2407.14679, section 4); depth is the faster cut. The shares are the user's.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from compress.arch.shape import KINDS, Kind, Shape, Widths
from compress.errors import UserError

Count = Callable[[Widths], float]  # what a model of these widths takes: parameters, bytes or time


@dataclass(frozen=True)
class PruneTarget:
    """How much stays. All fractions are fractions *kept*, in (0, 1].

    Attributes:
        keep: of what is counted, by default the non-embedding parameters (layers and final norm). None: only the
            explicit fractions below count.
        layers, mlp, heads, query_heads, hidden: of the groups of one kind; None leaves that kind to `keep` and `share`.
        share: the part of the removal each kind bears, relative to the others; a kind not named is not cut.
        multiple: MLP and residual widths are multiples of this (4-bit blocks and matrix tiles fit then).
        hidden_multiple: the same for residual widths, where it is another.
        tolerance: how far the fraction reached may be from `keep` before the target is refused.
        at_most: never more than `keep`, rather than nearest to it.
        asked: what the user typed for `keep`, where it is not that.

    Raises:
        UserError: fractions out of range, or nothing asked for.
    """

    keep: float | None = 0.85
    layers: float | None = None
    mlp: float | None = None
    heads: float | None = None
    query_heads: float | None = None
    hidden: float | None = None
    share: Mapping[Kind, float] = field(default_factory=lambda: {"layers": 0.5, "mlp": 0.5})
    multiple: int = 64
    hidden_multiple: int | None = None
    tolerance: float = 0.02
    at_most: bool = False
    asked: str | None = None

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
        count: of given widths, for instance `Architecture.non_embedding_parameters`; wider is never less.

    Raises:
        UserError: a fraction leaves nothing or does not fall on whole KV groups, or `keep` cannot be reached; says what
            is possible and what is nearest.
    """
    full = widths = shape.widths
    for kind, fraction in target.explicit.items():
        possible = _choices(kind, shape, widths, target)
        widths = _with(widths, kind, _explicit(kind, fraction, possible))
    if target.keep is None:
        return widths
    goal = target.keep * count(full)
    shares = {kind: target.share.get(kind, 0.0) for kind in KINDS if kind not in target.explicit}
    to_remove, whole = max(count(widths) - goal, 0.0), sum(shares.values())
    order: tuple[Kind, ...] = ("layers", "heads", "query_heads", "hidden", "mlp")
    cut = [kind for kind in order if shares.get(kind, 0.0) > 0]
    for kind in cut:
        # MLPs, the finest, take whatever the kinds before them have left
        here = goal if kind == "mlp" else count(widths) - to_remove * shares[kind] / whole
        last = kind == cut[-1]
        widths = _nearest(widths, kind, _choices(kind, shape, widths, target), here, count, last and target.at_most)
    reached = count(widths) / count(full)
    above = 0.0 if target.at_most else target.tolerance
    if not -target.tolerance <= reached - target.keep <= above or (target.keep < 1 and widths == full):
        raise _unreachable(target, full, widths, reached)
    return widths


MULTIPLES = (64, 32, 16, 8, 4, 2, 1)
HIDDEN_STEPS = 8
"""Residual widths come in at least so many steps, if a smaller multiple makes them."""
LEAST = 1 / 32
"""Of the neurons or residual channels that stay: fewer are no model any more."""


def solve_coarsest(shape: Shape, target: PruneTarget, count: Count) -> Widths:
    """`solve` at the largest of `MULTIPLES` that meets the target: a small model may be too narrow for steps of 64.

    Raises:
        UserError: not even steps of one meet it, or a fraction leaves next to nothing.
    """
    for multiple in MULTIPLES:
        hidden = next(m for m in MULTIPLES if m <= multiple and (m == 1 or m * HIDDEN_STEPS <= shape.hidden))
        if shape.hidden_by_heads:
            fine = [m for m in MULTIPLES if m <= hidden and math.lcm(m, shape.heads) * HIDDEN_STEPS <= shape.hidden]
            hidden = fine[0] if fine else 1
        try:
            return solve(shape, replace(target, multiple=multiple, hidden_multiple=hidden), count)
        except UserError:
            if multiple == MULTIPLES[-1]:
                raise
    raise AssertionError("unreachable")


def _with(widths: Widths, kind: Kind, groups: int) -> Widths:
    return replace(widths, **{kind: groups})


def _choices(kind: Kind, shape: Shape, widths: Widths, target: PruneTarget) -> list[int]:
    """The counts a kind can have, ascending: whole layers and KV groups, widths in multiples; or uncut."""
    full = shape.widths.of(kind)
    if kind not in ("mlp", "hidden"):
        return [*range(1, full), full]
    step = target.multiple
    if kind == "hidden":
        step = target.hidden_multiple or step
        step = math.lcm(step, widths.all_query_heads) if shape.hidden_by_heads else step
    return [*(n for n in range(step, full, step) if n >= LEAST * full), full]


def _nearest(widths: Widths, kind: Kind, choices: list[int], goal: float, count: Count, at_most: bool) -> Widths:
    """Set one kind so that the parameter count comes closest to `goal`; of two as close, the wider."""
    # wider is never less
    above = bisect_left(choices, goal, key=lambda groups: count(_with(widths, kind, groups)))
    near = [_with(widths, kind, choices[i]) for i in (above, above - 1) if 0 <= i < len(choices)]
    if at_most:
        near = [option for option in near if count(option) <= goal] or [_with(widths, kind, choices[0])]
    return min(near, key=lambda option: abs(count(option) - goal))


def _explicit(kind: Kind, fraction: float, choices: list[int]) -> int:
    """Groups kept for a stated fraction: the nearest count that is possible."""
    full = choices[-1]
    wanted = fraction * full
    nearest = min(reversed(choices), key=lambda groups: abs(groups - wanted))
    shown = choices if len(choices) <= 12 else [*choices[:2], *choices[-3:]]
    possible = f"Possible: {', '.join(f'{groups / full:.3g}' for groups in shown)} (that is {shown} of {full})."
    if wanted < choices[0] / 2:
        raise UserError(f"{kind}={fraction} keeps {wanted:.1f} of {full} {_UNIT[kind]}: that leaves nothing.", possible)
    if nearest == full and fraction < 1:
        raise UserError(f"{kind}={fraction} rounds to all of the {full} {_UNIT[kind]}: nothing would be cut.", possible)
    if kind in _WHOLE and abs(nearest - wanted) > 0.1:  # a rounded fraction like 0.67 of 3 is meant as 2 groups
        raise UserError(
            f"{kind}={fraction} would keep {wanted:.2f} of {full} {_UNIT[kind]}; {_WHOLE[kind]}.",
            possible,
        )
    return nearest


def _unreachable(target: PruneTarget, full: Widths, widths: Widths, reached: float) -> UserError:
    sizes = ", ".join(f"{widths.of(kind)} of {full.of(kind)} {_UNIT[kind]}" for kind in KINDS)
    finer = f"a smaller `multiple` (now {target.multiple}), " if target.multiple > 1 else ""
    nearest = "a larger goal" if target.asked else f"keep={reached:.3f}"
    hint = f"Give {nearest}, {finer}or another `share`."
    if target.explicit:
        stated = ", ".join(f"{kind}={fraction}" for kind, fraction in target.explicit.items())
        hint = f"{stated} already fix these kinds: leave out keep (keep=null) or some of them. {hint}"
    asked = target.asked or f"keep={target.keep}"
    return UserError(f"{asked} cannot be reached; the nearest is {reached:.3f} of the whole ({sizes}).", hint)


_UNIT: dict[Kind, str] = {
    "layers": "layers",
    "mlp": "neurons",
    "heads": "KV groups",
    "query_heads": "query heads of each KV group",
    "hidden": "residual channels",
}
_WHOLE: dict[Kind, str] = {
    "heads": "query heads go with their group, whole",
    "query_heads": "every group keeps as many",
}
"""Kinds of which there are so few that a fraction in between is a mistake."""
