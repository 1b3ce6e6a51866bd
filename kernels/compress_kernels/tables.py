"""What is asked of a table of levels at every step, as Python's numbers: read from the device once."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import NamedTuple

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class Ends(NamedTuple):
    """Of a table of at least two ascending levels."""

    first: float
    last: float
    uniform: bool
    """Whether they are consecutive integers."""
    low: float
    """One level's distance before the first,"""
    high: float
    """and one beyond the last."""


_KNOWN: MutableMapping[Tensor, Ends] = WeakTensorKeyDictionary()


def ends_of(table: Tensor) -> Ends:
    """The ends of `table` [entries], which never changes: a GPU is waited for once, not in every layer and step."""
    ends = _KNOWN.get(table)
    if ends is None:
        first, second, *_ = values = table.tolist()
        before, last = values[-2:]
        ends = Ends(first, last, last - first == len(values) - 1, 2 * first - second, 2 * last - before)
        _KNOWN[table] = ends
    return ends
