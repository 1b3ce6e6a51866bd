"""What `sweep_columns` and `round_weight` are asked for, shared by the tests of their backends."""

from __future__ import annotations

import compress_kernels as ck
import torch
from compress_kernels import LatentWeight, Sweep
from torch import Tensor

TABLES = {
    "int4": torch.arange(-8, 8, dtype=torch.float32),
    "int8": torch.arange(-127, 128, dtype=torch.float32),
    "positive": torch.arange(0, 32, dtype=torch.float32),
    "nf4": ck.NF4_CODE.sort().values,
    "fp4": ck.FP4_CODE.sort().values,  # its zero twice
}


def request(rows: int, columns: int, table: str, anchored: bool, shifted: bool, seed: int = 0) -> Sweep:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    levels = TABLES[table]
    scale = draw(rows, columns) / float(levels.abs().max())  # negative ones too
    scale[:: max(1, rows // 3), columns // 2] = 0
    return Sweep(
        work=draw(rows, columns),
        anchor=draw(rows, columns) if anchored else None,
        coupling=draw(columns, columns) * 0.2 + torch.eye(columns),
        pivot=torch.rand(columns, generator=generator) + 0.5,
        gain=torch.rand(columns, generator=generator) + 0.5,
        scale=scale,
        offset=draw(rows, columns) * 0.1 if shifted else None,
        table=levels,
    )


SHAPES = ((1, 1, 1), (3, 2, 32), (5, 3, 64), (2, 1, 300), (7, 1, 17))
"""Rows, blocks a row, weights a block."""


def latent_weight(rows: int, blocks: int, width: int, table: str, shifted: bool, seed: int = 0) -> LatentWeight:
    """Some latents beyond the table, some on a border between two levels; one scale is zero, some are negative."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    levels = torch.unique(TABLES[table])
    latent = draw(rows, blocks * width) * float(levels.abs().max())
    latent[0, 0] = (levels[0] + levels[1]) / 2
    latent[-1, -1] = 2 * levels[-1] - levels[-2]
    scale = draw(rows, blocks)
    scale[0, -1] = 0
    return LatentWeight(latent, scale, draw(rows, blocks) if shifted else None, levels)


SHAPES = ((1, 1, 1), (3, 2, 32), (5, 3, 64), (2, 1, 300), (7, 1, 17))
