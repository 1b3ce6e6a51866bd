"""Micro-batches of a training, by global step: the same if it was interrupted, and on several processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from compress.train.settings import Training

if TYPE_CHECKING:
    from compress.data.windows import Windows


class Batches(IterableDataset[dict[str, Tensor]]):
    """Micro-batches by global step, so that a resumed run sees exactly what an undisturbed one would have seen.

    A step's windows are divided evenly among its micro-batches and the processes, and a micro-batch's `share` makes up
    for their different numbers of scored tokens: its mean loss times `share`, averaged over micro-batches and
    processes, is the mean over all tokens of the step. On one process and in one piece it is 1.
    """

    def __init__(self, windows: Windows, settings: Training, steps: int, rank: int = 0) -> None:
        self.windows, self.settings, self.steps, self.rank = windows, settings, steps, rank
        self.first_step = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        pieces = self.settings.accumulate * self.settings.devices
        micro = self.settings.batch // pieces
        for step in range(self.first_step, self.steps):
            rows = torch.arange(step * self.settings.batch, (step + 1) * self.settings.batch) % len(self.windows.ids)
            # the last position of a window predicts nothing we know
            scored = (self.windows.lengths[rows] - 1).double()
            for piece in range(self.rank, pieces, self.settings.devices):
                own = slice(piece * micro, (piece + 1) * micro)
                share = pieces * scored[own].sum() / scored.sum()
                ids, lengths = self.windows.ids[rows[own]], self.windows.lengths[rows[own]]
                yield {"ids": ids, "lengths": lengths, "rows": rows[own], "share": share.float()}
