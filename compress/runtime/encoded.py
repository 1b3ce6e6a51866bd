"""Encoded tensors of a checkpoint, whatever its layout, and the layout of our own.

Three layouts lie on disk: dense; bitsandbytes' (all linear layers on one of its grids), which plain transformers reads;
and ours, for every other choice of grids, tensor by tensor:

    config.json          "quantization_config": {"quant_method": "compress", "version": 1,
                             "grids": {module path: grid name}, "activations": null | "int8_token" | "int8_static"}
    NAME.weight.<part>   the parts of the grid's `Encoded`
    NAME.weight.shape    int64 [2], [out, in]
    NAME.weight.input_absmax   fp32 [1], the range of the layer's inputs where activations are static
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.arch import adapter_for
from compress.arch.linears import linear_paths
from compress.grids import Encoded, FourBit, Grid, Int8, grid_named

if TYPE_CHECKING:
    from compress.checkpoint import Checkpoint

METHOD = "compress"
VERSION = 1
SHAPE = "shape"
INT8_TOKENS = "int8_token"
"""Activations of INT8 layers are rounded to INT8, every token on a scale of its own."""
INT8_STATIC = "int8_static"
"""The same, all tokens of a layer on one scale."""
INPUT_ABSMAX = "input_absmax"
"""The part of an INT8 weight that says which: the largest magnitude of its inputs."""


def quantization_of(raw_config: dict[str, Any]) -> dict[str, Any] | None:
    """Our block of config.json, or None if the checkpoint is not in our layout."""
    block = raw_config.get("quantization_config") or {}
    return block if block.get("quant_method") == METHOD else None


def own_layout(name: str, encoded: Encoded) -> dict[str, Tensor]:
    """Tensors to store for the weight `name` (ending in `.weight`) in our layout."""
    return {
        **{f"{name}.{part}": value for part, value in encoded.parts.items()},
        f"{name}.{SHAPE}": torch.tensor(list(encoded.shape)),
    }


def own_config(grids: dict[str, str], activations: str | None) -> dict[str, Any]:
    """Our block of config.json."""
    return {
        "quant_method": METHOD,
        "version": VERSION,
        "grids": dict(sorted(grids.items())),
        "activations": activations,
    }


def encoded_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Encoded | Tensor, Grid | None]]:
    """Every weight in name order with its grid, None where it is dense; one in memory at a time.

    Names are the checkpoint's own, ending in `.weight` for what is encoded; encoded weights are [out, in].
    """
    names = set(checkpoint.shards)
    own = quantization_of(checkpoint.raw_config)
    grids = own["grids"] if own else {}
    parameter = adapter_for(checkpoint.config).parameter
    for name in sorted(names):
        if f"{name}.{SHAPE}" in names or _is_part(name, names):
            continue
        if name.endswith(f".weight.{SHAPE}"):
            whole = name.removesuffix(f".{SHAPE}")
            grid = grid_named(grids[parameter(whole).removesuffix(".weight")])
            yield whole, _own(checkpoint, whole, names), grid
        elif state := _state_name(name, names):
            yield name, *_four_bit(checkpoint, name, state)
        elif f"{name.removesuffix('.weight')}.SCB" in names:
            parts = {"codes": checkpoint.read(name), "absmax": checkpoint.read(name.removesuffix("weight") + "SCB")}
            yield name, Encoded(parts, parts["codes"].shape, compute_dtype(checkpoint)), Int8()
        else:
            yield name, checkpoint.read(name), None


def _is_part(name: str, names: set[str]) -> bool:
    """Whether `name` belongs to an encoded weight (and is not what that weight is listed under)."""
    whole, _, part = name.rpartition(".")
    if part == SHAPE:
        return False
    if part in ("SCB", "weight_format"):
        return f"{whole}.weight" in names
    return f"{whole}.{SHAPE}" in names or ".quant_state." in name or _state_name(whole, names) is not None


def _state_name(name: str, names: set[str]) -> str | None:
    """The tensor that holds bitsandbytes' description of the weight `name`."""
    candidates = (f"{name}.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))
    return next((candidate for candidate in candidates if candidate in names), None)


def _own(checkpoint: Checkpoint, name: str, names: set[str]) -> Encoded:
    prefix = f"{name}."
    parts = {part.removeprefix(prefix): checkpoint.read(part) for part in sorted(names) if part.startswith(prefix)}
    shape = torch.Size(parts.pop(SHAPE).tolist())
    return Encoded(parts, shape, compute_dtype(checkpoint))


def _four_bit(checkpoint: Checkpoint, name: str, state_name: str) -> tuple[Encoded, Grid]:
    state: dict[str, Any] = json.loads(bytes(checkpoint.read(state_name).tolist()))
    parts = {"codes": checkpoint.read(name).flatten(), "absmax": checkpoint.read(f"{name}.absmax")}
    double = "nested_offset" in state
    if double:
        parts |= {
            "nested_absmax": checkpoint.read(f"{name}.nested_absmax"),
            "offset": torch.tensor(state["nested_offset"], dtype=torch.float32),
        }
    grid = FourBit(state["quant_type"], state["blocksize"], double)
    return Encoded(parts, torch.Size(state["shape"]), getattr(torch, state["dtype"])), grid


def compute_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The type that decoded weights have."""
    dtype: torch.dtype = getattr(torch, checkpoint.dtype_name)
    return dtype


def decoded_state(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """State dict of the dense model that a checkpoint stands for, by the model's parameter names.

    Args:
        checkpoint: in any layout.
        dtype: of the result; as the checkpoint computes by default.
    """
    architecture = adapter_for(checkpoint.config)
    linears = {f"{path}.weight" for path in linear_paths(checkpoint.config)}
    state: dict[str, Tensor] = {}
    for stored_name, value, grid in encoded_tensors(checkpoint):
        name = architecture.parameter(stored_name)
        if isinstance(value, Tensor):
            state[name] = value if dtype is None else value.to(dtype)
            continue
        assert grid is not None
        dense = grid.decode(replace(value, dtype=dtype or value.dtype))
        transposed = architecture.modules.conv1d and name in linears
        state[name] = dense.t().contiguous() if transposed else dense
    return state
