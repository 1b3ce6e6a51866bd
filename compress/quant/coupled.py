"""Rounding rows together, by what their errors do to the model's answers, not to the layer's outputs.

    tr(G E H E^T)        E = W - Q    H = E[x x^T]    G = E[g g^T]

x are a layer's inputs, g the gradients at its outputs of the log-probability of tokens that the model itself draws: the
Fisher information of the layer's weights, as a Kronecker product (K-FAC, arXiv 1503.05671), which is how the KL to the
original grows with E. Where G is not diagonal, what rounding a row costs can be made up for by other rows. Feedback in
both directions: YAQA (arXiv 2505.22988). G is block-diagonal here, and a few rows are rounded at a time, each group on
what those before it have cost:

    w_R <- w_R - U_BR^T U_BB^-T (w_B - q_B)        U: upper Cholesky factor of G^-1; B: the group; R: the rows after it

which is exact for groups of one row; rows of a group know nothing of each other until descent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.grids import Grid, Scales, value_of
from compress.quant.gptq import COLUMNS, Curvature, Order, Rounded, down, in_order, inverse_factor
from compress.quant.scales import refit

GROUP = 4
"""Rows that are rounded at a time."""
TRUST = 0.6
"""In what G says off its diagonal: it comes from few tokens, and on others holds in part."""
DAMPING = 0.1
"""Of G, relative to its mean diagonal."""
GUARD = 1e-6
"""Of what has been damped already."""


@dataclass(frozen=True)
class Outputs:
    """G of one layer, blocks [rows, rows] of its diagonal, from the first row on."""

    blocks: Sequence[Tensor]

    def held_back(self) -> Outputs | None:
        """What can be relied on, with a mean diagonal of one; None if outputs move nothing."""
        mean = torch.cat([block.diagonal() for block in self.blocks]).mean()
        if not bool(mean.isfinite()) or not bool(mean > 0):
            return None
        held = []
        for block in self.blocks:
            less = block * (TRUST / mean)
            less.diagonal().copy_(block.diagonal() / mean + DAMPING)
            held.append(less)
        return Outputs(held)

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows of each block, and the block."""
        first = 0
        for block in self.blocks:
            yield slice(first, first + len(block)), block
            first += len(block)

    def times(self, error: Tensor) -> Tensor:
        """G E, [rows, columns]."""
        return torch.cat([block @ error[rows] for rows, block in self.parts()])

    def others(self, error: Tensor) -> Tensor:
        """What the errors of other rows are to each row, in its own terms: (G - D) E / D, D the diagonal of G."""
        own = torch.cat([block.diagonal() for block in self.blocks])[:, None]
        return self.times(error) / own - error

    def energy(self, error: Tensor, gram: Tensor) -> float:
        """tr(G E H E^T)."""
        return float((self.times(error) * (error @ gram)).sum())


def together(
    goal: Tensor, gram: Tensor, h: Tensor, outputs: Outputs, grid: Grid, scales: Scales, damping: float, rounds: int
) -> tuple[Rounded, Scales]:
    """Feedback, then levels and scales in turns.

    Args:
        goal: [rows, columns].
        gram: second moment of the inputs [columns, columns].
        h: the same, damped.
        outputs: held back.
        grid: where the levels are.
        scales: to begin with.
        damping: of `gram`.
        rounds: turns.
    """
    rounded = feed_back(goal, gram, outputs, grid, scales, damping)
    for _ in range(rounds):
        rounded = descend_together(goal, rounded.levels, h, outputs, grid, scales)
        error = goal - value_of(rounded.levels, scales)
        tried = refit(goal + outputs.others(error), rounded.levels, scales, h, grid)
        after = goal - value_of(rounded.levels, tried)
        if outputs.energy(after, h) < outputs.energy(error, h):  # each row was refitted as if the others stood still
            scales = tried
    if rounds:
        rounded = descend_together(goal, rounded.levels, h, outputs, grid, scales)
    return rounded, scales


def feed_back(goal: Tensor, gram: Tensor, outputs: Outputs, grid: Grid, scales: Scales, damping: float) -> Rounded:
    """Round `goal` [rows, columns], every column of a row and every row making up for those before it."""
    columns = Order.of(gram, damping, at_once(gram))
    levels, aimed = torch.empty_like(goal), torch.empty_like(goal)
    for rows, block in outputs.parts():
        order = block.diagonal().argsort(descending=True, stable=True)
        upper = inverse_factor(block[order][:, order], GUARD)
        w = goal[rows][order].float()
        for first in range(0, len(order), GROUP):
            now = slice(first, min(first + GROUP, len(order)))
            at = rows.start + order[now]
            own = of_rows(scales, at)
            rounded = in_order(w[now], columns, grid, own)
            levels[at], aimed[at] = rounded.levels, rounded.goal
            cost = w[now] - value_of(rounded.levels, own)
            spread = torch.linalg.solve_triangular(upper[now, now].t(), cost, upper=False)
            w[now.stop :].addmm_(upper[now, now.stop :].t(), spread, alpha=-1)
    return Rounded(levels, aimed)


def descend_together(goal: Tensor, levels: Tensor, h: Tensor, outputs: Outputs, grid: Grid, scales: Scales) -> Rounded:
    """One pass of coordinate descent, some rows at a time; tr(G E H E^T) never rises.

    Within a group G is at most the diagonal of its absolute row sums, so that each row has a step of its own; rows far
    from each other, of different heads, make a group.
    """
    curvature, levels, aimed = Curvature.of(h, at_once(h)), levels.clone(), torch.empty_like(goal)
    for rows, block in outputs.parts():
        error = goal[rows] - value_of(levels[rows], of_rows(scales, rows))
        groups = -(-len(block) // GROUP)
        for first in range(groups):
            some = torch.arange(first, len(block), groups, device=goal.device)
            at = rows.start + some
            own = of_rows(scales, at)
            most = block[some][:, some].abs().sum(1)
            wanted = value_of(levels[at], own) + block[some] @ error / most[:, None]
            found = down(wanted, levels[at], curvature, grid, own)
            levels[at], aimed[at] = found.levels, found.goal
            error[some] = goal[at] - value_of(found.levels, own)
    return Rounded(levels, aimed)


def at_once(gram: Tensor) -> int:
    """Columns swept together: all on a processor, as a few rows make no product; a GPU holds a tile of some."""
    return len(gram) if gram.device.type == "cpu" else COLUMNS


def of_rows(scales: Scales, rows: Tensor | slice) -> Scales:
    """Scales of some rows, to compute with, not to store."""
    return Scales(scales.scale[rows], None if scales.offset is None else scales.offset[rows])
