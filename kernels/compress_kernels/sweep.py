"""Rounding columns one after the other, each seeing what the ones before it have cost.

The inner loop of GPTQ's error feedback (arXiv:2210.17323) and of coordinate descent on the same error (QuantEase,
arXiv:2309.01885), on any grid: value = scale * level + offset with levels from an ascending table. For every row, over
a block of b columns j = 0 .. b-1:

    x_j = anchor_j + pivot_j * work_j              where the column should be
    v_j = the grid's value nearest to x_j
    m_j = gain_j * (x_j - v_j)                     without anchors (feedback: what rounding has cost)
    m_j = gain_j * (v_j - anchor_j)                with anchors (descent: how far the column has moved)
    work_k -= m_j * coupling_jk                    for k > j

Feedback: work = W, coupling = U, pivot = 1, gain = 1 / U_jj. Descent: work = the pull H (W - Q)^T, anchor = Q,
coupling = H, pivot = 1 / H_jj, gain = 1. What `m` means for the columns after the block is one matrix product of the
caller's.

Rows are independent. Operations: rows * b^2 multiply-adds / 2; bytes: 7 * 4 per element, once. At b = 128 a row's 128 *
7 floats stay in L1, so arithmetic sets the pace.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress_kernels.backend import backend
from compress_kernels.tables import ends_of


@dataclass(frozen=True)
class Sweep:
    """One block of columns, all fp32 and contiguous.

    work, scale: [rows, b]; anchor, offset: [rows, b] or None; coupling: [b, b]; pivot, gain: [b]; table: [entries],
    ascending.
    """

    work: Tensor
    anchor: Tensor | None
    coupling: Tensor
    pivot: Tensor
    gain: Tensor
    scale: Tensor
    offset: Tensor | None
    table: Tensor

    @property
    def uniform(self) -> bool:
        """Whether the table is consecutive integers."""
        return ends_of(self.table).uniform


@dataclass(frozen=True)
class Swept:
    """[rows, b] each: the levels chosen, where each column was aimed, and m."""

    levels: Tensor
    aimed: Tensor
    moved: Tensor


def sweep_columns(request: Sweep) -> Swept:
    """Round the columns of one block. `request.work` is not changed.

    Raises ValueError if a shape does not fit or a tensor is not fp32.
    """
    rows, columns = request.work.shape
    full, row = (rows, columns), (columns,)
    expected = {"work": full, "anchor": full, "coupling": (columns, columns), "pivot": row, "gain": row}
    expected |= {"scale": full, "offset": full, "table": tuple(request.table.shape[:1])}
    for name, shape in expected.items():
        tensor: Tensor | None = getattr(request, name)
        if tensor is not None and (tensor.shape != shape or tensor.dtype != torch.float32):
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}: expected torch.float32 {shape}")
    return backend(request.work.device).sweep_columns(request)
