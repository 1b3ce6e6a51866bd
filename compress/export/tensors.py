"""Every weight a checkpoint stands for, as it is: on its grid with its codes, or dense."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from compress.arch import adapter_for
from compress.arch.linears import linear_paths
from compress.grids import Encoded
from compress.runtime.encoded import compute_dtype, encoded_tensors, quantization_of
from compress.stage import ADAPTER, DENSE

if TYPE_CHECKING:
    from torch import Tensor

    from compress.checkpoint import Checkpoint
    from compress.grids import Grid


def delivered(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor | Encoded, Grid | None]]:
    """Parameter name, value and grid (None: dense) of every weight, one in memory at a time.

    An adapter is added to its decoded base. Buffers that models no longer hold, and the head of a tied model, are left
    out. An encoded weight is [out, in]; a dense one lies as the family has it.
    """
    architecture = adapter_for(checkpoint.config)
    for stored, value, grid in _stored(checkpoint):
        if architecture.is_tied_copy(checkpoint.config, stored):
            continue
        if grid is None and architecture.axes(checkpoint.config, stored) is None:
            continue
        yield architecture.parameter(stored), value, grid


def _stored(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor | Encoded, Grid | None]]:
    if ADAPTER in checkpoint.traits:
        from compress.export.hf import merged_weights
        from compress.runtime.loading import load_model

        conv1d = adapter_for(checkpoint.config).modules.conv1d
        for name, tensor in merged_weights(load_model(checkpoint.folder, dtype=compute_dtype(checkpoint)), conv1d):
            yield name, tensor.detach(), None
        return
    yield from encoded_tensors(checkpoint)


def dense_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The plain model of the same weights, decoded in `dtype`, that computes without any rounding of activations."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(checkpoint.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    conv1d = adapter_for(config).modules.conv1d
    linears = {f"{path}.weight" for path in linear_paths(config)}
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value, grid in delivered(checkpoint):
            dense = value
            if isinstance(value, Encoded):
                assert grid is not None
                dense = grid.decode(replace(value, dtype=torch.float32))
                dense = dense.t() if conv1d and name in linears else dense
            parameters[name].copy_(dense)
    return model


def computes_plainly(checkpoint: Checkpoint) -> bool:
    """Whether the pipeline's model multiplies decoded weights with activations as they are, in the type asked for."""
    own = quantization_of(checkpoint.raw_config)
    return DENSE in checkpoint.traits or (own is not None and own["activations"] is None)
