"""What a dense model of given widths takes: parameters and bytes, from its config alone."""

from __future__ import annotations

from compress.arch import Widths, adapter_for
from compress.arch.base import Config
from compress.arch.inventory import inventory

ITEM = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
HEADER_ENTRY = 100
"""Bytes that a tensor takes in the header of a safetensors file at most, besides its name."""


def parameters(config: Config, widths: Widths) -> int:
    """Of the layers and the final norm."""
    return adapter_for(config).non_embedding_parameters(config, widths)


def dense_bytes(config: Config, widths: Widths) -> int:
    """Of the weight files, embeddings included, in the type that the config names."""
    named = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or "float32"
    item = ITEM[str(named).removeprefix("torch.")]
    return sum(item * parameter.numel + len(parameter.name) + HEADER_ENTRY for parameter in inventory(config, widths))
