"""The code tables of blockwise quantization: the values of NF4, of FP4 and of the nested 8-bit map.

NF4: quantiles of the normal distribution (Dettmers et al., QLoRA, arXiv:2305.14314). FP4: one sign, two exponent and
one mantissa bit, scaled to [-1, 1]. The dynamic map: a dynamic exponent and fraction (Dettmers, arXiv:1511.04561); it
encodes the block scales of double quantization. All three have the bits of bitsandbytes 0.50.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

KINDS = ("nf4", "fp4")
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
NESTED_BLOCK = 256
INT8_LEVELS = 127
INT8_UNIT = 6.200124e-05
"""bitsandbytes' 1 / 127^2 (which is 6.200012e-05)."""

NF4_CODE: Tensor = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    dtype=torch.float32,
)
"""fp32 [16], ascending."""

_FP4_MAGNITUDES = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]
FP4_CODE: Tensor = torch.tensor(_FP4_MAGNITUDES + [-m for m in _FP4_MAGNITUDES], dtype=torch.float32) / 12.0
"""fp32 [16], in bit-pattern order; code 8 is a negative zero's place and decodes to 0."""
FP4_CODE[8] = 0.0


def _dynamic_code() -> Tensor:
    """The signed 8-bit dynamic map: for each of seven exponents, twice as many fractions as for the one below.

    Returns: fp32 [256], ascending.
    """
    values: list[float] = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        means = (edges[:-1] + edges[1:]) / 2.0
        scale = 10.0 ** (exponent - 6)
        values += (scale * means).tolist()
        values += (-scale * means).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32)


DYNAMIC_CODE: Tensor = _dynamic_code()
"""fp32 [256], ascending."""


@dataclass(frozen=True)
class CodeTable:
    """One kind of 4-bit code on one device.

    values: fp32 [16] by code; bounds: fp32 [15], the midpoints of neighbouring values, ascending; order: uint8 [16],
    the code of each position on the sorted axis.
    """

    values: Tensor
    bounds: Tensor
    order: Tensor


@cache
def code_table(kind: str, device: torch.device) -> CodeTable:
    """The table of `kind` on `device`. Raises ValueError for an unknown kind."""
    if kind not in KINDS:
        raise ValueError(f"unknown 4-bit kind {kind!r}: expected one of {', '.join(KINDS)}")
    values = NF4_CODE if kind == "nf4" else FP4_CODE
    order = torch.argsort(values, stable=True)
    bounds = (values[order[:-1]] + values[order[1:]]) / 2
    return CodeTable(values.to(device), bounds.to(device), order.to(torch.uint8).to(device))


@cache
def dynamic_code(device: torch.device) -> Tensor:
    """DYNAMIC_CODE on `device`."""
    return DYNAMIC_CODE.to(device)


@cache
def dynamic_lookup(device: torch.device) -> Tensor:
    """uint8 [65536]: the nearest dynamic code of each point of an even grid over [-1, 1].

    bitsandbytes finds a code by rounding onto this grid first, so a value close to a midpoint can get the neighbour of
    its nearest code; the saved bits depend on it.
    """
    point = torch.arange(65536, dtype=torch.float32)
    midpoints = 0.5 * (DYNAMIC_CODE[:-1] + DYNAMIC_CODE[1:])
    return torch.bucketize(-1.0 + (2.0 * point) / 65535, midpoints).to(torch.uint8).to(device)
