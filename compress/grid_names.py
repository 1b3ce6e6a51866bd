"""Every grid by name, without torch: what a config can be checked against before anything heavy is imported.

    int8                            8 bits, a scale for every row
    int4_g64, int3_g128_asym        groups of 32, 64 or 128, with or without a zero point
    q8_0, q5_1, q5_0, q4_0          llama.cpp's blocks
    nf4, fp4_b32, nf4_b64_single    blocks of 64 with double quantization, unless the name says otherwise

The grids themselves are in `compress.grids`.
"""

from __future__ import annotations

from compress.errors import UserError

GROUPS = (32, 64, 128)
"""Weights that share a scale, in grids that let one choose."""


def four_bit_name(table: str, block: int, double_quant: bool) -> str:
    """Of a 4-bit code table: "nf4", "fp4_b128" or "nf4_b64_single"."""
    plain = block == 64 and double_quant
    return table + ("" if plain else f"_b{block}" + ("" if double_quant else "_single"))


def integer_name(bits: int, group: int, symmetric: bool) -> str:
    """Of integers in groups: "int4_g64" or "int4_g64_asym"."""
    return f"int{bits}_g{group}" + ("" if symmetric else "_asym")


NAMES = (
    "int8",
    *("q8_0", "q5_1", "q5_0", "q4_0"),
    *(four_bit_name(table, block, double) for table in ("nf4", "fp4") for block in GROUPS for double in (True, False)),
    *(integer_name(bits, group, even) for bits in (4, 3) for group in GROUPS for even in (True, False)),
)


def check_grids(*names: str | None) -> None:
    """Refuse a name that no grid has; None stands for what stays dense.

    Raises:
        UserError: there is none; lists those there are.
    """
    for name in names:
        if name is not None and name not in NAMES:
            raise UserError(f"there is no grid {name!r}.", f"The grids are: {', '.join(NAMES)}.")
