"""Every weight a checkpoint stands for, as it is: on its grid with its codes, or dense."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from compress.arch import adapter_for
from compress.stage import ADAPTER

if TYPE_CHECKING:
    from torch import Tensor

    from compress.checkpoint import Checkpoint
    from compress.grids import Encoded, Grid


def delivered(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor | Encoded, Grid | None]]:
    """Parameter name, value and grid (None: dense) of every weight, one in memory at a time.

    An adapter is added to its decoded base. Buffers that models no longer hold, and the head of a tied model, are left
    out. An encoded weight is [out, in]; a dense one lies as the family has it.
    """
    architecture = adapter_for(checkpoint.config)
    tied = architecture.shape(checkpoint.config).tied
    for stored, value, grid in _stored(checkpoint):
        name = architecture.parameter(stored)
        if tied and name == f"{architecture.modules.head}.weight":
            continue
        if grid is None and architecture.axes(checkpoint.config, stored) is None:
            continue
        yield name, value, grid


def _stored(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor | Encoded, Grid | None]]:
    if ADAPTER in checkpoint.traits:
        from compress.export.hf import merged_weights
        from compress.runtime.loading import load_model

        conv1d = adapter_for(checkpoint.config).modules.conv1d
        for name, tensor in merged_weights(load_model(checkpoint.folder), conv1d):
            yield name, tensor.detach(), None
        return
    for name, tensor in checkpoint.tensors():
        yield name, tensor, None
