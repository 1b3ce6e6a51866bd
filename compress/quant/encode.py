"""Rewrites a dense checkpoint with weights on grids, tensor by tensor: the model is never loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from compress.arch import adapter_for
from compress.arch.linears import linear_paths
from compress.checkpoint import Checkpoint, TensorWriter, write_config
from compress.errors import UserError
from compress.grids import Encoded, Grid
from compress.runtime.layout import layout_for
from compress.stage import DENSE, QUANTIZED, Context, Metrics

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Placement:
    """Which weight goes on which grid, and what is known of it already.

    Attributes:
        grids: module path -> grid, for linear layers, embedding and head.
        activations: what linear layers do with their inputs: None, or "int8_token".
        solved: module path -> codes chosen by an algorithm; what is not there is rounded to nearest.
        dense: parameter name -> tensor that takes the place of the checkpoint's own (folded norms, trained biases).
    """

    grids: Mapping[str, Grid]
    activations: str | None = None
    solved: Mapping[str, Encoded] = field(default_factory=dict)
    dense: Mapping[str, Tensor] = field(default_factory=dict)


def linear_grids(config: object, grid: Grid) -> dict[str, Grid]:
    """Every projection of attention and MLP on one grid."""
    return dict.fromkeys(linear_paths(config), grid)


def encode_checkpoint(
    checkpoint: Checkpoint, placement: Placement, traits: frozenset[str], context: Context
) -> tuple[Checkpoint, Metrics]:
    """Write `checkpoint` with its weights on their grids into the stage's folder.

    Args:
        checkpoint: dense.
        placement: grids and codes.
        traits: what the result is besides quantized.
        context: of the stage.

    Returns:
        The quantized checkpoint, and per-weight relative errors ||W - Q(W)|| / ||W||.
    """
    architecture = adapter_for(checkpoint.config)
    linears = set(linear_paths(checkpoint.config))
    left_dense = _left_dense(checkpoint, placement, linears)
    chosen = {path: grid for path, grid in placement.grids.items() if path not in left_dense}
    if not chosen:
        raise UserError(
            "no linear layer of this model has a shape that runs on this grid.", "Quantize with another one."
        )
    layout = layout_for(chosen, linears - set(left_dense), placement.activations)
    writer = TensorWriter(context.folder)
    errors: dict[str, float] = {}
    stored = weights = 0
    with context.progress.bar("quantizing", len(chosen)) as advance:
        for stored_name, original in checkpoint.tensors():
            name = architecture.parameter(stored_name)
            path = name.removesuffix(".weight")
            tensor = placement.dense[name].detach().cpu() if name in placement.dense else original
            if path not in chosen:
                if not _is_tied_copy(name, architecture.modules.head, checkpoint):
                    writer.add(stored_name, tensor.to(original.dtype))
                continue
            # [out, in], as bitsandbytes and we hold a linear
            weight = tensor.t().contiguous() if architecture.modules.conv1d and path in linears else tensor
            grid = chosen[path]
            encoded = replace(placement.solved.get(path) or grid.encode(weight), dtype=original.dtype)
            errors[path] = relative_error(weight, grid.decode(encoded))
            for part, value in layout.on_disk(name, encoded, grid).items():
                writer.add(part, value)
            stored += encoded.bytes()
            weights += weight.numel()
            advance(1)
    writer.close()
    checkpoint.copy_sidecars(context.folder)
    dtype = checkpoint.raw_config.get("dtype") or "float32"
    if left_dense:
        context.progress.say(f"{len(left_dense)} of {len(linears)} layers stay dense: their shapes do not fit the grid")
    write_config(context.folder, checkpoint.config, {"quantization_config": layout.config(chosen, dtype, left_dense)})
    metrics = {
        "left_dense": left_dense,
        "grids": {path: grid.name for path, grid in sorted(chosen.items())},
        "bits_per_weight": 8 * stored / weights,
        "mean_relative_error": sum(errors.values()) / len(errors),
        "relative_error": errors,
    }
    return Checkpoint(context.folder, (checkpoint.traits - {DENSE}) | {QUANTIZED} | traits, checkpoint.name), metrics


def _left_dense(checkpoint: Checkpoint, placement: Placement, linears: set[str]) -> list[str]:
    """Paths whose weight has a shape that the runtimes of its grid cannot multiply with."""
    from safetensors import safe_open

    architecture = adapter_for(checkpoint.config)
    left = []
    for stored_name, file in checkpoint.shards.items():
        path = architecture.parameter(stored_name).removesuffix(".weight")
        if path in placement.grids and stored_name.endswith(".weight"):
            with safe_open(file, "pt") as opened:
                shape = opened.get_slice(stored_name).get_shape()
            shape = shape[::-1] if architecture.modules.conv1d and path in linears else shape
            if not placement.grids[path].fits(shape):
                left.append(path)
    return left


def _is_tied_copy(name: str, head: str, checkpoint: Checkpoint) -> bool:
    """A tied head that a checkpoint stores all the same: it is its embedding, and is written once."""
    return name == f"{head}.weight" and bool(checkpoint.config.tie_word_embeddings)


def relative_error(weight: Tensor, decoded: Tensor) -> float:
    """||W - Q(W)|| / ||W|| in fp32."""
    difference = (weight.float() - decoded.float()).norm()
    return float(difference / weight.float().norm().clamp_min(1e-30))
