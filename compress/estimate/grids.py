"""What one weight becomes in our own layout, which holds any grid for any tensor: `NAME.weight.<part>` and its shape.

    grid                    parts                                                            bits per weight
    int8                    codes, fp32 absmax per row                                       8 + 32 / in
    int4, int3, groups g    codes in int32 words of 8 or 10, bf16 scales                     4 or 3.2 + 16 / g
    ... _asym               and zero points in int8                                          + 8 / g
    nf4, fp4, blocks b      codes two to a byte, absmax (in 8 bits with absmax of its own)   4 + (8 + 32 / 256) / b
    q8_0, q5_1, q5_0, q4_0  llama.cpp's blocks of 32                                         8.5, 6, 5.5, 4.5

The grids themselves are in `compress.grids`; here are only their sizes, so that an estimate needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from compress.arch.inventory import Parameter
from compress.estimate.layouts import (
    GGUF_BLOCK,
    GGUF_BLOCK_BYTES,
    NESTED_BLOCK,
    TYPES,
    Format,
    Stored,
    dimensions,
)
from compress.grid_names import check_grids

PARTS = re.compile(
    r"(?P<int8>int8)|int(?P<bits>[34])_g(?P<group>\d+)(?P<zero>_asym)?|(?P<gguf>q\d_\d)"
    r"|(?P<table>nf4|fp4)(?:_b(?P<block>\d+))?(?P<single>_single)?"
)
"""What a name says; which names there are, `compress.grid_names` knows."""
Part = tuple[str, str, tuple[int, ...]]
"""Name, safetensors' type and shape."""


@dataclass(frozen=True)
class OwnFormat:
    """A grid by its name, in our own layout."""

    grid: str

    @property
    def kind(self) -> str:
        """The grid's name."""
        return self.grid

    def fits(self, out: int, width: int) -> bool:
        """Whether a weight [out, width] can be on the grid."""
        found = _match(self.grid)
        if found["table"]:
            return Format(found["table"], int(found["block"] or 64)).fits(out, width)
        block = GGUF_BLOCK if found["gguf"] else int(found["group"] or 1)
        return width % block == 0

    def parts(self, out: int, width: int) -> list[Part]:
        """The tensors that hold a weight [out, width], without its shape."""
        found = _match(self.grid)
        if found["int8"]:
            return [("codes", "I8", (out, width)), ("absmax", "F32", (out,))]
        if found["gguf"]:
            return [("blocks", "U8", (out, width // GGUF_BLOCK * GGUF_BLOCK_BYTES[found["gguf"].upper()]))]
        if found["bits"]:
            groups = (out, width // int(found["group"]))
            words = -(-width // (32 // int(found["bits"])))
            zero: list[Part] = [("zero", "I8", groups)] if found["zero"] else []
            return [("codes", "I32", (out, words)), ("scale", "BF16", groups), *zero]
        blocks = out * width // int(found["block"] or 64)
        codes: Part = ("codes", "U8", (out * width // 2,))
        if found["single"]:
            return [codes, ("absmax", "F32", (blocks,))]
        nested = -(-blocks // NESTED_BLOCK)
        return [codes, ("absmax", "U8", (blocks,)), ("nested_absmax", "F32", (nested,)), ("offset", "F32", ())]

    def stored(self, weight: Parameter, dtype: str, transposed: bool = False) -> list[Stored]:
        """The tensors that stand for `weight`, as `Format.stored` gives them."""
        if len(weight.shape) != 2 or not _takes(self.grid, weight, transposed):
            return [Stored(weight.name, TYPES[dtype], weight.shape)]
        parts = self.parts(*dimensions(weight, transposed))
        tensors = [Stored(f"{weight.name}.{name}", kind, shape) for name, kind, shape in parts]
        return [*tensors, Stored(f"{weight.name}.shape", "I64", (2,))]


@dataclass(frozen=True)
class BudgetFormat:
    """Grids that are chosen within a budget: so many bits a weight, whichever they will be."""

    bits: float
    candidates: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Mixed."""
        return "mixed"

    def least_bits(self, shapes: Iterable[tuple[int, int]]) -> float:
        """Bits a weight that the smallest grids take for weights [out, in]; 0 if none fits any."""
        taken, numel = 0, 0
        for out, width in shapes:
            grids = [grid for grid in map(OwnFormat, self.candidates) if grid.fits(out, width)]
            if grids:
                taken += min(sum(Stored(*part).bytes for part in grid.parts(out, width)) for grid in grids)
                numel += out * width
        return 8 * taken / numel if numel else 0.0

    def stored(self, weight: Parameter, dtype: str, transposed: bool = False) -> list[Stored]:
        """One tensor of codes for `weight`; dense where no candidate fits."""
        if len(weight.shape) != 2:
            return [Stored(weight.name, TYPES[dtype], weight.shape)]
        fitting = [grid for grid in self.candidates if _takes(grid, weight, transposed)]
        if not fitting:
            return [Stored(weight.name, TYPES[dtype], weight.shape)]
        size = min(round(self.bits * weight.numel / 8), max(_bytes(g, weight, transposed) for g in fitting))
        return [Stored(f"{weight.name}.blocks", "U8", (size,)), Stored(f"{weight.name}.shape", "I64", (2,))]


def _takes(grid: str, weight: Parameter, transposed: bool) -> bool:
    """As `compress.grids.fits`: an embedding or a head may have any number of rows."""
    out, width = dimensions(weight, transposed)
    return OwnFormat(grid).fits(-(-out // 32) * 32 if weight.role in ("embedding", "head") else out, width)


def laid_out(grid: str, alone: bool, int8_inputs: bool) -> Format | OwnFormat:
    """The linear layers on one grid: bitsandbytes' layout where it has it (`compress.runtime.layout.layout_for`).

    Args:
        grid: by name.
        alone: nothing but the linear layers is on a grid.
        int8_inputs: they run on INT8 activations.
    """
    found = _match(grid)
    if alone and found["table"] and not int8_inputs:
        return Format(found["table"], int(found["block"] or 64), not found["single"])
    return Format("int8") if alone and found["int8"] and int8_inputs else OwnFormat(grid)


def block_of_grid(grid: str) -> int:
    """Weights that share a scale; 0 for a whole row."""
    found = _match(grid)
    if found["gguf"]:
        return GGUF_BLOCK
    return int(found["group"] or found["block"] or (64 if found["table"] else 0))


def _bytes(grid: str, weight: Parameter, transposed: bool) -> int:
    return sum(Stored(*part).bytes for part in OwnFormat(grid).parts(*dimensions(weight, transposed)))


def _match(grid: str) -> re.Match[str]:
    check_grids(grid)
    found = PARTS.fullmatch(grid)
    assert found is not None
    return found
