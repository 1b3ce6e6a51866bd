"""The front is what its definition says, and the choice in the middle lies on it."""

from __future__ import annotations

import math
import random

import pytest

from compress.sweep.pareto import dominates, front, middle

NAN = math.nan


def cloud(count: int, width: int, seed: int) -> list[tuple[float, ...]]:
    rng = random.Random(seed)
    # few values, so that there are ties
    return [tuple(float(rng.randint(0, 6)) for _ in range(width)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("width", [2, 3])
def test_front_is_what_nothing_dominates(seed: int, width: int) -> None:
    rows = cloud(30, width, seed)
    found = set(front(rows))
    for index, row in enumerate(rows):
        beaten = any(all(a <= b for a, b in zip(other, row, strict=True)) and other != row for other in rows)
        assert (index in found) is not beaten
    # everything off the front is beaten by something on it
    assert all(any(dominates(rows[i], rows[j]) for i in found) for j in set(range(30)) - found)


def test_equal_rows_are_both_kept() -> None:
    assert front([(1, 2), (1, 2), (2, 2)]) == [0, 1]


def test_what_is_not_finite_neither_stays_nor_beats() -> None:
    assert front([(NAN, 0), (1, 1), (math.inf, -1), (2, 2)]) == [1]
    assert front([]) == []


def test_middle_is_the_balanced_one() -> None:
    rows = [(0.0, 100.0), (0.2, 20.0), (1.0, 0.0), (0.21, 21.0)]
    assert middle(rows, [0, 1, 2]) == 1
    assert middle(rows, [2]) == 2
    assert middle(rows, []) is None


def test_middle_does_not_depend_on_units() -> None:
    rows = cloud(40, 3, 5)
    scaled = [(1e-3 * a + 5, 1e6 * b, c) for a, b, c in rows]
    assert middle(rows, front(rows)) == middle(scaled, front(scaled))
