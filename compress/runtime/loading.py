"""From a folder to a model that computes: dense, NF4 or INT8, with or without an adapter."""

from __future__ import annotations

import copy
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.arch import adapter_for
from compress.arch.linears import linear_paths
from compress.checkpoint import Checkpoint
from compress.grids import Encoded, Int8
from compress.hardware import gpu_has_bf16, native
from compress.quiet import quiet_transformers
from compress.runtime.encoded import (
    INPUT_ABSMAX,
    INT8_STATIC,
    INT8_TOKENS,
    compute_dtype,
    decoded_state,
    encoded_tensors,
    quantization_of,
)
from compress.runtime.four_bit import four_bit_layers, put_on_codes, use_four_bit_kernels, use_four_bit_type
from compress.runtime.int8 import Int8Linear
from compress.runtime.modules import replace_module


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    plain: bool = False,
    as_codes: bool = False,
) -> Any:
    """The model of a checkpoint folder, in evaluation mode, on our kernels where there are any.

    Args:
        folder: Hugging Face layout; an adapter beside the base is applied.
        dtype: of the dense tensors, and of products; by default as stored, or fp32 where `slow_half` says so.
        device: where to.
        plain: exactly as `from_pretrained` gives it, without our kernels.
        as_codes: 4-bit weights of our own layout stay codes, to be run; by default they are decoded, to be measured,
            exported or trained like any model's.
    """
    from transformers import AutoModelForCausalLM

    checkpoint = Checkpoint(folder, frozenset())
    own = quantization_of(checkpoint.raw_config)
    if dtype is None and slow_half(compute_dtype(checkpoint), device):
        dtype = torch.float32
    if own is not None:
        return load_own(checkpoint, own, dtype, device, as_codes)
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype or "auto", device_map={"": str(device)}, attn_implementation="sdpa"
        )
    # its INT8 layers say at every product that they cast their input
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if dtype is not None:
        for parameter in model.parameters():  # what lies beside quantized layers is loaded as stored
            if parameter.is_floating_point() and not hasattr(parameter, "quant_state"):
                parameter.data = parameter.data.to(dtype)
        use_four_bit_type(model, dtype)
    elif any(slow_half(layer.compute_dtype, device) for layer in four_bit_layers(model) if layer.compute_dtype):
        use_four_bit_type(model, torch.float32)  # whatever the model's own type
    if not plain:
        use_four_bit_kernels(model)
        use_int8_kernels(model)
    return model.eval()


def load_original(checkpoint: Checkpoint, device: torch.device | str = "cpu", plain: bool = False) -> Any:
    """The model of a checkpoint as others are compared with it: without rows of padding that they do not have."""
    model = load_model(checkpoint.folder, device=device, plain=plain)
    if checkpoint.rows is not None:
        model.resize_token_embeddings(checkpoint.rows)
    return model


def slow_half(dtype: torch.dtype, device: torch.device | str) -> bool:
    """Whether `device` has no products in this half precision: what lies in it computes in fp32."""
    place = torch.device(device)
    if place.type == "cuda":
        return dtype is torch.bfloat16 and not gpu_has_bf16(place.index)
    return place.type == "cpu" and not native(str(dtype).removeprefix("torch."))


def reloaded_in(checkpoint: Checkpoint) -> torch.dtype | None:
    """The type that a fresh process on this processor computes in: None for the stored one. Where activations are
    rounded, another type rounds some of them the other way."""
    return torch.float32 if slow_half(compute_dtype(checkpoint), "cpu") else None


def load_own(
    checkpoint: Checkpoint,
    quantization: dict[str, Any],
    dtype: torch.dtype | None,
    device: torch.device | str,
    as_codes: bool,
) -> Any:
    """A checkpoint in our layout: decoded, but for INT8 layers whose activations are INT8 too.

    Args:
        checkpoint: the folder.
        quantization: its block of config.json.
        dtype: of the dense tensors; as stored by default.
        device: where to.
        as_codes: keep 4-bit weights as they are, on our kernels.
    """
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(checkpoint.config)
    del config.quantization_config
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(config))
    with quiet_transformers():
        model = kind.from_pretrained(
            None,
            config=config,
            state_dict=decoded_state(checkpoint, dtype),
            dtype=dtype or compute_dtype(checkpoint),
            device_map={"": str(device)},
            attn_implementation="sdpa",
        )
    if quantization["activations"] in (INT8_TOKENS, INT8_STATIC):
        parameter = adapter_for(config).parameter
        for name, value, grid in encoded_tensors(checkpoint):
            path = parameter(name).removesuffix(".weight")
            if isinstance(grid, Int8) and isinstance(value, Encoded) and path in set(linear_paths(config)):
                bias = getattr(model.get_submodule(path), "bias", None)
                codes, absmax = value.parts["codes"], value.parts["absmax"]
                static = value.parts.get(INPUT_ABSMAX)
                layer = Int8Linear(codes, absmax, None if bias is None else bias.data, static, static is None)
                replace_module(model, path, layer.to(device))
    if as_codes:
        rows = dtype or compute_dtype(checkpoint)
        named = ((parameter_path(checkpoint, name), value, grid) for name, value, grid in encoded_tensors(checkpoint))
        put_on_codes(model, ((p, v, g) for p, v, g in named if isinstance(v, Encoded) and g is not None), rows)
    return model.eval()


def parameter_path(checkpoint: Checkpoint, name: str) -> str:
    """The module that the tensor `name` of a checkpoint is the weight of."""
    return adapter_for(checkpoint.config).parameter(name).removesuffix(".weight")


def use_int8_kernels(model: nn.Module) -> None:
    """Put `Int8Linear` in the place of every bitsandbytes INT8 layer, with the same codes and scales.

    Layers that multiply their loud inputs apart (LLM.int8(), a threshold above 0) stay bitsandbytes'.
    """
    if "bitsandbytes" not in sys.modules:
        return
    from bitsandbytes.nn import Linear8bitLt

    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, Linear8bitLt) and not module.state.threshold
    ]
    for name, module in found:
        weight: Any = module.weight
        absmax = weight.SCB if weight.SCB is not None else module.state.SCB
        bias = None if module.bias is None else module.bias.data
        replace_module(model, name, Int8Linear(weight.data, absmax, bias, through_half=True))
