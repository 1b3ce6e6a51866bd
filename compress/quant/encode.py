"""Rewrites a dense checkpoint with its linear layers on a grid, tensor by tensor: the model is never loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from compress.arch import adapter_for
from compress.arch.linears import linear_paths
from compress.checkpoint import Checkpoint, TensorWriter, write_config
from compress.grids import Grid
from compress.runtime.layout import on_disk, quantization_config
from compress.stage import DENSE, QUANTIZED, Context, Metrics

if TYPE_CHECKING:
    from torch import Tensor


def linear_weights(checkpoint: Checkpoint) -> dict[str, bool]:
    """Names of the weights that are quantized -> whether they are stored [in, out] (GPT-2's Conv1D).

    All projections of attention and MLP; embeddings, head and norms stay as they are.
    """
    conv1d = adapter_for(checkpoint.config).modules.conv1d
    return {f"{path}.weight": conv1d for path in linear_paths(checkpoint.config)}


def encode_checkpoint(
    checkpoint: Checkpoint,
    grid: Grid,
    traits: frozenset[str],
    context: Context,
    trained: Mapping[str, Tensor] | None = None,
) -> tuple[Checkpoint, Metrics]:
    """Write `checkpoint` with its linears encoded on `grid` into the stage's folder.

    Args:
        checkpoint: dense.
        grid: for the linear layers.
        traits: what the result is besides quantized.
        context: of the stage.
        trained: tensors by name that take the place of the checkpoint's own, in fp32.

    Returns:
        The quantized checkpoint, and per-weight relative errors ||W - Q(W)|| / ||W||.
    """
    linears = linear_weights(checkpoint)
    writer = TensorWriter(context.folder)
    errors: dict[str, float] = {}
    stored = weights = 0
    with context.progress.bar("quantizing", len(linears)) as advance:
        for name, original in checkpoint.tensors():
            tensor = original if trained is None else trained[name].detach().cpu()
            if name not in linears:
                writer.add(name, tensor.to(original.dtype))
                continue
            # bitsandbytes and we alike hold a linear as [out, in]
            weight = tensor.t().contiguous() if linears[name] else tensor
            encoded = replace(grid.encode(weight), dtype=original.dtype)
            errors[name.removesuffix(".weight")] = relative_error(weight, grid.decode(encoded))
            for part, value in on_disk(name, encoded, grid).items():
                writer.add(part, value)
            stored += encoded.bytes()
            weights += weight.numel()
            advance(1)
    writer.close()
    checkpoint.copy_sidecars(context.folder)
    dtype = checkpoint.raw_config.get("dtype") or "float32"
    write_config(context.folder, checkpoint.config, {"quantization_config": quantization_config(grid, dtype)})
    metrics = {
        "bits_per_weight": 8 * stored / weights,
        "mean_relative_error": sum(errors.values()) / len(errors),
        "relative_error": errors,
    }
    return Checkpoint(context.folder, (checkpoint.traits - {DENSE}) | {QUANTIZED} | traits, checkpoint.name), metrics


def relative_error(weight: Tensor, decoded: Tensor) -> float:
    """||W - Q(W)|| / ||W|| in fp32."""
    difference = (weight.float() - decoded.float()).norm()
    return float(difference / weight.float().norm().clamp_min(1e-30))
