"""Writes a Hugging Face artifact: what the pipeline measured, as it is, or with its adapter merged on request."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.checkpoint import ADAPTER_CONFIG, Checkpoint, write_config
from compress.export.settings import HFExport, Merge
from compress.stage import ADAPTER
from compress.writer import TensorWriter


def write_artifact(checkpoint: Checkpoint, settings: HFExport, folder: Path) -> None:
    """Write the artifact's files, the manifest excepted."""
    folder.mkdir(parents=True)
    checkpoint.copy_sidecars(folder)
    if settings.merge is Merge.dense and ADAPTER in checkpoint.traits:
        write_merged(checkpoint, folder)
        return
    checkpoint.copy_weights(folder)
    if (checkpoint.folder / ADAPTER_CONFIG).is_file():
        shutil.copyfile(checkpoint.folder / ADAPTER_CONFIG, folder / ADAPTER_CONFIG)


def write_merged(checkpoint: Checkpoint, folder: Path) -> None:
    """Decode the base, add the adapter in fp32 and write a dense model in the base's compute type.

    Encoding the sum on the 4-bit grid again would throw away what the adapter won, so the merged form is dense.
    """
    from compress.arch import adapter_for
    from compress.runtime.encoded import compute_dtype
    from compress.runtime.loading import load_model

    dtype = compute_dtype(checkpoint)
    model = load_model(checkpoint.folder, dtype=dtype)
    conv1d = adapter_for(checkpoint.config).modules.conv1d
    writer = TensorWriter(folder)
    for name, tensor in merged_weights(model, conv1d):
        writer.add(name, tensor.detach().to("cpu", dtype))
    writer.close()
    write_config(folder, checkpoint.config, {"quantization_config": None})


def merged_weights(model: nn.Module, conv1d: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor of every weight of the plain model that a 4-bit `model` with its adapters stands for.

    A tied head is not among them: it is its embedding.
    """
    from compress.runtime.four_bit import dequantized, is_four_bit

    adapted: list[str] = []
    for path, module in model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        layer: Any = module
        delta = (
            layer.scaling["default"] * layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float()
        )
        if is_four_bit(layer.base_layer):
            merged = dequantized(layer.base_layer) + delta.cpu()
            yield f"{path}.weight", merged.t().contiguous() if conv1d else merged
        else:
            yield f"{path}.weight", layer.base_layer.weight.float() + (delta.t() if conv1d else delta)
        if layer.base_layer.bias is not None:
            yield f"{path}.bias", layer.base_layer.bias
        adapted.append(path + ".")
    for name, parameter in model.named_parameters():
        if not name.startswith(tuple(adapted)):
            yield name, parameter
