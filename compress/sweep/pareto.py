"""Which runs no other beats in everything (Pareto), and the one in the middle. Smaller is better in every figure."""

from __future__ import annotations

import math
from collections.abc import Sequence

Row = Sequence[float]


def dominates(one: Row, other: Row) -> bool:
    """Is `one` nowhere worse than `other`, and somewhere better?"""
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


def front(rows: Sequence[Row]) -> list[int]:
    """Indices of the rows that no other dominates; a row with a figure that is not finite is never among them."""
    whole = [index for index, row in enumerate(rows) if all(map(math.isfinite, row))]
    return [index for index in whole if not any(dominates(rows[other], rows[index]) for other in whole)]


def middle(rows: Sequence[Row], among: Sequence[int]) -> int | None:
    """The row of `among` nearest to the ideal that has the best of every figure.

    Each figure is scaled to run from 0, its best in `among`, to 1, its worst there.
    """
    if not among:
        return None
    columns = list(zip(*(rows[index] for index in among), strict=True))
    low = [min(column) for column in columns]
    span = [max(column) - least or 1.0 for column, least in zip(columns, low, strict=True)]

    def distance(index: int) -> float:
        return math.hypot(*((v - least) / s for v, least, s in zip(rows[index], low, span, strict=True)))

    return min(among, key=distance)
