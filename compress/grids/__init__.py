"""What a number can be. A grid is pure: it fits scales to a tensor, encodes on them and decodes again."""

from compress.grids.base import Encoded, Grid
from compress.grids.int8 import Int8
from compress.grids.nf4 import FourBit

__all__ = ["Encoded", "FourBit", "Grid", "Int8"]
