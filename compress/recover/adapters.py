"""LoRA adapters by peft: put on, started from the quantization residual, written the same for equal runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from compress.arch import adapter_for
from compress.arch.linears import linear_paths
from compress.calibrate import input_grams
from compress.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Checkpoint, write_config
from compress.durable import readable_as_others
from compress.errors import UserError
from compress.quiet import quiet_transformers
from compress.recover.residual import low_rank
from compress.runtime.four_bit import dequantized, is_four_bit
from compress.runtime.loading import load_model
from compress.stage import ADAPTER, Context


def add_adapters(model: Any, config: Any, rank: int, alpha: float) -> Any:
    """Freeze `model` and put a LoRA on every linear layer, in place; returns peft's wrapper around it."""
    from peft import LoraConfig, get_peft_model

    names = sorted({path.rpartition(".")[2] for path in linear_paths(config)})
    lora = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=names, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
    )
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)  # peft draws A; the same adapters for the same run
    with quiet_transformers():
        adapted = get_peft_model(model, lora)
    torch.set_rng_state(generator_state)
    return adapted


def start_from_residual(model: Any, checkpoint: Checkpoint, context: Context, tokens: int) -> None:
    """Set every adapter to the low-rank part of what quantization threw away.

    Args:
        model: with adapters on.
        checkpoint: the quantized one.
        context: knows the dense model the codes were made from.
        tokens: the error is weighted by the inputs on this much calibration text; 0 for no weighting.
    """
    if context.dense is None:
        raise UserError("the dense model of this quantized one is not known.", "Start with recover start=zero.")
    architecture = adapter_for(checkpoint.config)
    stored_names = {architecture.parameter(name): name for name in context.dense.shards}
    # what is left dense has lost nothing
    layers = {path: model.get_submodule(path) for path in linear_paths(checkpoint.config)}
    layers = {path: layer for path, layer in layers.items() if is_four_bit(layer.base_layer)}
    widths = {path: layer.in_features for path, layer in layers.items()}
    parts: Iterable[Mapping[str, Tensor | None]] = [dict.fromkeys(layers)]
    if tokens:
        parts = input_grams(load_model(context.dense.folder, device=context.fabric.device), widths, context, tokens)
    for grams in parts:
        with context.progress.bar("adapters from the residual", len(grams)) as advance:
            for path, gram in grams.items():
                weight = context.dense.read(stored_names[f"{path}.weight"]).float()
                _start(layers[path], weight.t() if architecture.modules.conv1d else weight, gram)
                advance(1)


@torch.no_grad()
def _start(layer: Any, weight: Tensor, gram: Tensor | None) -> None:
    residual = weight - dequantized(layer.base_layer).to(weight.device)
    a, b = low_rank(residual, layer.r["default"], None if gram is None else gram.to(weight.device))
    layer.lora_A["default"].weight.copy_(a / layer.scaling["default"])
    layer.lora_B["default"].weight.copy_(b)


def write_adapters(adapted: Any, base: Checkpoint, context: Context) -> Checkpoint:
    """Base and adapter in one folder, as transformers and peft read them; adapters in bf16."""
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    part = context.folder / "adapter.part"
    with quiet_transformers():
        adapted.save_pretrained(part, safe_serialization=True)
    (part / ADAPTER_WEIGHTS).rename(context.folder / ADAPTER_WEIGHTS)
    readable_as_others(context.folder / ADAPTER_WEIGHTS)
    # peft writes sets in hash order and the path of this machine
    values = json.loads((part / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    values |= {"base_model_name_or_path": None, "target_modules": sorted(values["target_modules"])}
    (context.folder / ADAPTER_CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.rmtree(part)
    base.copy_weights(context.folder)
    base.copy_sidecars(context.folder)
    write_config(context.folder, base.config)
    return Checkpoint(context.folder, base.traits | {ADAPTER}, base.name)
