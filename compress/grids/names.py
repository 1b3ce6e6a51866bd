"""Every grid by name: what configs, checkpoints and reports call them."""

from __future__ import annotations

from typing import get_args

from compress.grid_names import GROUPS, check_grids
from compress.grids.base import Grid
from compress.grids.gguf import GGUF, Kind
from compress.grids.int8 import Int8
from compress.grids.integer import Integer
from compress.grids.nf4 import FourBit


def _all() -> dict[str, Grid]:
    grids: list[Grid] = [Int8(), *(GGUF(kind) for kind in get_args(Kind))]
    grids += [FourBit(kind, block, double) for kind in ("nf4", "fp4") for block in GROUPS for double in (True, False)]
    grids += [Integer(bits, group, symmetric) for bits in (4, 3) for group in GROUPS for symmetric in (True, False)]
    return {grid.name: grid for grid in grids}


GRIDS: dict[str, Grid] = _all()


def grid_named(name: str) -> Grid:
    """The grid of that name.

    Raises:
        UserError: there is none; lists those there are.
    """
    check_grids(name)
    return GRIDS[name]
