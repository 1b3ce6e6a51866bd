"""What a number can be. A grid is pure: which levels and scales there are, and how they are stored."""

from compress.grids.base import Encoded, Grid, Scales
from compress.grids.blocks import fits, level_of, nearest_level, per_column, value_of
from compress.grids.gguf import GGUF
from compress.grids.int8 import Int8
from compress.grids.integer import Integer
from compress.grids.names import GRIDS, grid_named
from compress.grids.nf4 import FourBit

__all__ = [
    "GGUF",
    "GRIDS",
    "Encoded",
    "FourBit",
    "Grid",
    "Int8",
    "Integer",
    "Scales",
    "fits",
    "grid_named",
    "level_of",
    "nearest_level",
    "per_column",
    "value_of",
]
