"""A teacher that is not there: what the loss needs of it is kept by window, or nothing is needed at all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from compress_kernels import SparseTargets


class StoredTeacher(nn.Module, ABC):
    """In the place of a teacher model: gives targets by window instead of computing them from tokens."""

    @abstractmethod
    def targets(self, rows: Tensor, positions: int) -> SparseTargets:
        """Targets of windows `rows` [batch], for the first `positions` tokens of each, flattened."""


class NoTeacher(StoredTeacher):
    """No teacher: the cross-entropy with the text itself is all there is to train on."""

    def targets(self, rows: Tensor, positions: int) -> SparseTargets:
        """One outcome, everything, which every student gets right."""
        from compress_kernels import SparseTargets

        count = len(rows) * positions
        ids = torch.zeros(count, 0, dtype=torch.int64, device=rows.device)
        return SparseTargets(ids, log_mass=torch.zeros(count, 1, device=rows.device))
