"""From a folder to a model that computes: dense, NF4 or INT8, with or without an adapter."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.quiet import quiet_transformers
from compress.runtime.four_bit import use_four_bit_kernels
from compress.runtime.int8 import Int8Linear


def load_model(
    folder: Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu", plain: bool = False
) -> Any:
    """The model of a checkpoint folder, in evaluation mode, on our kernels where there are any.

    Args:
        folder: Hugging Face layout; an adapter beside the base is applied.
        dtype: of the dense tensors; as stored by default.
        device: where to.
        plain: exactly as `from_pretrained` gives it, without our kernels.
    """
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype or "auto", device_map={"": str(device)}, attn_implementation="sdpa"
        )
    # its INT8 layers say at every product that they cast their input
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if not plain:
        use_four_bit_kernels(model)
        use_int8_kernels(model)
    return model.eval()


def use_int8_kernels(model: nn.Module) -> None:
    """Put `Int8Linear` in the place of every bitsandbytes INT8 layer: the same codes and scales, without the
    detour through fp16."""
    if "bitsandbytes" not in sys.modules:
        return
    from bitsandbytes.nn import Linear8bitLt

    found = [(name, module) for name, module in model.named_modules() if isinstance(module, Linear8bitLt)]
    for name, module in found:
        weight: Any = module.weight
        absmax = weight.SCB if weight.SCB is not None else module.state.SCB
        bias = None if module.bias is None else module.bias.data
        replace_module(model, name, Int8Linear(weight.data, absmax, bias))


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Set the submodule at the dotted path `name`."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
