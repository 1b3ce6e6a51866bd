"""How encoded tensors lie on disk: bitsandbytes' own names, so that plain `from_pretrained` reads them.

NF4   <name>.weight uint8 [n / 2, 1], .absmax, .quant_map, .nested_absmax, .nested_quant_map,
      .quant_state.bitsandbytes__nf4 (JSON as bytes)
INT8  <name>.weight int8 [out, in], <name>.SCB fp32 [out] (absmax per row), <name>.weight_format uint8 (0: row major)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from compress_kernels import DYNAMIC_CODE, FP4_CODE, NF4_CODE
from torch import Tensor

from compress.grids import Encoded, FourBit, Grid, Int8
from compress.grids.nf4 import NESTED_BLOCK


def on_disk(name: str, encoded: Encoded, grid: Grid) -> dict[str, Tensor]:
    """Tensors to store for the weight `name` (ending in `.weight`)."""
    if isinstance(grid, FourBit):
        return _four_bit(name, encoded, grid)
    if isinstance(grid, Int8):
        module = name.removesuffix(".weight")
        return {
            name: encoded.parts["codes"],
            f"{module}.SCB": encoded.parts["absmax"],
            f"{module}.weight_format": torch.tensor(0, dtype=torch.uint8),
        }
    raise TypeError(f"{type(grid).__name__} has no layout that plain transformers reads")


def _four_bit(name: str, encoded: Encoded, grid: FourBit) -> dict[str, Tensor]:
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
        f"{name}.quant_map": NF4_CODE.clone() if grid.kind == "nf4" else FP4_CODE.clone(),
    }
    if "nested_absmax" in parts:
        state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": float(parts["offset"])}
        tensors[f"{name}.nested_absmax"] = parts["nested_absmax"]
        tensors[f"{name}.nested_quant_map"] = DYNAMIC_CODE.clone()
    packed = json.dumps(state).encode()
    tensors[f"{name}.quant_state.bitsandbytes__{grid.kind}"] = torch.tensor(list(packed), dtype=torch.uint8)
    return tensors


def quantization_config(grid: Grid, dtype: str, left_dense: Sequence[str] = ()) -> dict[str, Any]:
    """The block `quantization_config` of config.json that goes with `on_disk`.

    Args:
        grid: of all quantized tensors.
        dtype: the type the products are computed in, such as "bfloat16".
        left_dense: paths of linear layers that are not on the grid.
    """
    # by default the head stays dense; a list of one's own replaces that, so the head must be named in it
    skipped = [*left_dense, "lm_head", "embed_out"] if left_dense else None
    common = {"quant_method": "bitsandbytes", "llm_int8_skip_modules": skipped, "llm_int8_has_fp16_weight": False}
    if isinstance(grid, FourBit):
        return common | {
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_compute_dtype": dtype,
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": grid.kind,
            "bnb_4bit_use_double_quant": grid.double_quant,
        }
    if isinstance(grid, Int8):
        # threshold 0: every activation goes through INT8, as it did when the model was measured
        return common | {"load_in_4bit": False, "load_in_8bit": True, "llm_int8_threshold": 0.0}
    raise TypeError(f"{type(grid).__name__} has no quantization_config that plain transformers reads")
