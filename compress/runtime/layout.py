"""How encoded tensors lie on disk: bitsandbytes' own names where it has the grid, so that plain `from_pretrained` reads
them, and names of ours for every other choice (`compress.runtime.encoded`).

NF4   <name>.weight uint8 [n / 2, 1], .absmax, .quant_map, .nested_absmax, .nested_quant_map,
      .quant_state.bitsandbytes__nf4 (JSON as bytes)
INT8  <name>.weight int8 [out, in], <name>.SCB fp32 [out] (absmax per row), <name>.weight_format uint8 (0: row major)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from compress_kernels import DYNAMIC_CODE
from torch import Tensor

from compress.grids import Encoded, FourBit, Grid, Int8
from compress.grids.nf4 import NESTED_BLOCK
from compress.runtime.encoded import INT8_TOKENS, own_config, own_layout


class Layout(Protocol):
    """Names of stored tensors, and the block `quantization_config` of config.json that goes with them."""

    def on_disk(self, name: str, encoded: Encoded, grid: Grid) -> dict[str, Tensor]:
        """Tensors to store for the weight `name` (ending in `.weight`)."""
        ...

    def config(self, grids: Mapping[str, Grid], dtype: str, left_dense: Sequence[str]) -> dict[str, Any]:
        """The block.

        Args:
            grids: module path -> grid.
            dtype: the type the products are computed in, such as "bfloat16".
            left_dense: paths of linear layers that are not on a grid.
        """
        ...


def layout_for(grids: Mapping[str, Grid], linears: AbstractSet[str], activations: str | None) -> Layout:
    """bitsandbytes' layout if all linear layers, and nothing else, are on one grid that it has; else ours."""
    kinds = set(grids.values())
    if set(grids) == set(linears) and len(kinds) == 1:
        grid = next(iter(kinds))
        if isinstance(grid, FourBit) and activations is None:
            return BitsAndBytes4bit()
        if isinstance(grid, Int8) and activations == INT8_TOKENS:
            return BitsAndBytesInt8()
    return Own(activations)


@dataclass(frozen=True)
class Own:
    """Any grid for any tensor; `compress.load` reads it."""

    activations: str | None

    def on_disk(self, name: str, encoded: Encoded, grid: Grid) -> dict[str, Tensor]:
        """Parts under the weight's name."""
        return own_layout(name, encoded)

    def config(self, grids: Mapping[str, Grid], dtype: str, left_dense: Sequence[str]) -> dict[str, Any]:
        """Grid names by module path."""
        return own_config({path: grid.name for path, grid in grids.items()}, self.activations)


def _common(left_dense: Sequence[str]) -> dict[str, Any]:
    # by default the head stays dense; a list of one's own replaces that, so the head must be named in it
    skipped = [*left_dense, "lm_head", "embed_out"] if left_dense else None
    return {
        "quant_method": "bitsandbytes",
        "llm_int8_skip_modules": skipped,
        "llm_int8_has_fp16_weight": False,
    }


@dataclass(frozen=True)
class BitsAndBytes4bit:
    """NF4 and FP4."""

    def on_disk(self, name: str, encoded: Encoded, grid: Grid) -> dict[str, Tensor]:
        """Codes, scales, tables and the description."""
        assert isinstance(grid, FourBit)
        parts = encoded.parts
        state: dict[str, Any] = {
            "quant_type": grid.kind,
            "blocksize": grid.block,
            "dtype": str(encoded.dtype).removeprefix("torch."),
            "shape": list(encoded.shape),
        }
        tensors = {
            name: parts["codes"].reshape(-1, 1),
            f"{name}.absmax": parts["absmax"],
            f"{name}.quant_map": grid.table.clone(),
        }
        if "nested_absmax" in parts:
            nested = {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32"}
            state |= nested | {"nested_offset": float(parts["offset"])}
            tensors[f"{name}.nested_absmax"] = parts["nested_absmax"]
            tensors[f"{name}.nested_quant_map"] = DYNAMIC_CODE.clone()
        packed = json.dumps(state).encode()
        tensors[f"{name}.quant_state.bitsandbytes__{grid.kind}"] = torch.tensor(list(packed), dtype=torch.uint8)
        return tensors

    def config(self, grids: Mapping[str, Grid], dtype: str, left_dense: Sequence[str]) -> dict[str, Any]:
        """As transformers' BitsAndBytesConfig writes it."""
        grid = next(iter(grids.values()))
        assert isinstance(grid, FourBit)
        return _common(left_dense) | {
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_compute_dtype": dtype,
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": grid.kind,
            "bnb_4bit_use_double_quant": grid.double_quant,
        }


@dataclass(frozen=True)
class BitsAndBytesInt8:
    """LLM.int8 without outliers."""

    def on_disk(self, name: str, encoded: Encoded, grid: Grid) -> dict[str, Tensor]:
        """Codes and row scales."""
        module = name.removesuffix(".weight")
        return {
            name: encoded.parts["codes"],
            f"{module}.SCB": encoded.parts["absmax"],
            f"{module}.weight_format": torch.tensor(0, dtype=torch.uint8),
        }

    def config(self, grids: Mapping[str, Grid], dtype: str, left_dense: Sequence[str]) -> dict[str, Any]:
        """As transformers' BitsAndBytesConfig writes it."""
        # threshold 0: every activation goes through INT8, as it did when the model was measured
        return _common(left_dense) | {"load_in_4bit": False, "load_in_8bit": True, "llm_int8_threshold": 0.0}
