"""Requests for `sweep_columns`, shared by the tests of its backends."""

from __future__ import annotations

import compress_kernels as ck
import torch
from compress_kernels import Sweep
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
