"""Rewrites a dense checkpoint with its linear layers on a grid, tensor by tensor: the model is never loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from compress.arch import adapter_for
from compress.arch.linears import linear_paths
from compress.checkpoint import Checkpoint, TensorWriter, write_config
from compress.errors import UserError
from compress.grids import FourBit, Grid
from compress.runtime.layout import on_disk, quantization_config
from compress.stage import DENSE, QUANTIZED, Context, Metrics

if TYPE_CHECKING:
    from torch import Tensor


def encode_checkpoint(
    checkpoint: Checkpoint,
    grid: Grid,
    traits: frozenset[str],
    context: Context,
    trained: Mapping[str, Tensor] | None = None,
) -> tuple[Checkpoint, Metrics]:
    """Write `checkpoint` with its linears encoded on `grid` into the stage's folder.

    Args:
        checkpoint: dense. Every projection of attention and MLP is encoded; embeddings, head and norms stay.
        grid: for the linear layers.
        traits: what the result is besides quantized.
        context: of the stage.
        trained: tensors by name that take the place of the checkpoint's own, in fp32.

    Returns:
        The quantized checkpoint, and per-weight relative errors ||W - Q(W)|| / ||W||.
    """
    architecture = adapter_for(checkpoint.config)
    conv1d = architecture.modules.conv1d
    linears = {f"{path}.weight" for path in linear_paths(checkpoint.config)}
    writer = TensorWriter(context.folder)
    errors: dict[str, float] = {}
    left_dense: list[str] = []
    stored = weights = 0
    with context.progress.bar("quantizing", len(linears)) as advance:
        for stored_name, original in checkpoint.tensors():
            name = architecture.parameter(stored_name)
            tensor = original if trained is None or name not in trained else trained[name].detach().cpu()
            if name not in linears:
                writer.add(stored_name, tensor.to(original.dtype))
                continue
            # bitsandbytes and we alike hold a linear as [out, in]
            weight = tensor.t().contiguous() if conv1d else tensor
            if not runs(grid, weight.shape):
                left_dense.append(name.removesuffix(".weight"))
                writer.add(stored_name, tensor.to(original.dtype))
                continue
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
    if not weights:
        raise UserError(
            "no linear layer of this model has a shape that runs on this grid.", "Quantize with another one."
        )
    if left_dense:
        context.progress.say(
            f"{len(left_dense)} of {len(linears)} layers stay dense: bitsandbytes cannot run their shapes"
        )
    block = quantization_config(grid, dtype, left_dense)
    write_config(context.folder, checkpoint.config, {"quantization_config": block})
    metrics = {
        "left_dense": left_dense,
        "bits_per_weight": 8 * stored / weights,
        "mean_relative_error": sum(errors.values()) / len(errors),
        "relative_error": errors,
    }
    return Checkpoint(context.folder, (checkpoint.traits - {DENSE}) | {QUANTIZED} | traits, checkpoint.name), metrics


def runs(grid: Grid, shape: Sequence[int]) -> bool:
    """Whether bitsandbytes can multiply with a weight [out, in] of this shape on this grid on every device.

    Its 4-bit CPU kernels take whole blocks along a row, and 32 rows at a time.
    """
    return not isinstance(grid, FourBit) or (shape[1] % grid.block == 0 and shape[0] % 32 == 0)


def relative_error(weight: Tensor, decoded: Tensor) -> float:
    """||W - Q(W)|| / ||W|| in fp32."""
    difference = (weight.float() - decoded.float()).norm()
    return float(difference / weight.float().norm().clamp_min(1e-30))
