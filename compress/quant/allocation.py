"""One grid for every tensor, so that what is lost is least and the bytes suffice: a multiple-choice knapsack.

    min  sum_ij s_ij x_ij     with  sum_j x_ij = 1 for every tensor i,   sum_ij b_ij x_ij <= budget,   x_ij in {0, 1}

s_ij is what tensor i loses on grid j, b_ij the bytes it takes there. Solved to optimality by HiGHS through
`scipy.optimize.milp`; the relaxation has at most one tensor that is split, so it takes well under a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OBJECTIVE = 1e6
"""The largest loss is scaled to this: the solver stops at a gap of 1e-6, whatever the unit."""


@dataclass(frozen=True)
class Choice:
    """A tensor on one of its grids."""

    grid: str
    bytes: int
    loss: float
    """In any unit that is the same for all tensors."""


def allocate(choices: Mapping[str, Sequence[Choice]], budget: int) -> dict[str, Choice] | None:
    """The choice for every tensor, or None if no allocation keeps to `budget` bytes."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    if smallest(choices) > budget:
        return None
    flat = [(row, choice) for row, path in enumerate(choices) for choice in choices[path]]
    count = len(flat)
    taken = np.array([choice.bytes for _, choice in flat], dtype=float)
    loss = np.array([choice.loss for _, choice in flat])
    one_each = csr_array((np.ones(count), ([row for row, _ in flat], range(count))), shape=(len(choices), count))
    constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(taken[None] / budget, -np.inf, 1)]
    while True:
        found = milp(
            loss * (OBJECTIVE / (loss.max() or 1.0)),
            integrality=np.ones(count),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            return {path: min(options, key=lambda choice: choice.bytes) for path, options in choices.items()}
        picked = [choice for (_, choice), x in zip(flat, found.x, strict=True) if x > 0.5]
        if sum(choice.bytes for choice in picked) <= budget:
            return dict(zip(choices, picked, strict=True))
        # a few bytes too many are within the solver's tolerance, but not within ours: anything but this one
        constraints.append(LinearConstraint((found.x > 0.5).astype(float)[None], -np.inf, len(choices) - 1))


def smallest(choices: Mapping[str, Sequence[Choice]]) -> int:
    """Bytes of every tensor on its smallest grid."""
    return sum(min(choice.bytes for choice in options) for options in choices.values())
