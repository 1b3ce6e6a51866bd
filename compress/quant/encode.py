"""Rewrites a dense checkpoint with weights on grids, tensor by tensor: the model is never loaded.

While one tensor is encoded the disk reads the next and writes the last. Without calibration a run that was killed goes
on with the tensor it stopped at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from compress.arch import adapter_for
from compress.arch.linears import linear_paths
from compress.checkpoint import Checkpoint, write_config
from compress.errors import UserError
from compress.grids import Encoded, FourBit, Grid, fits
from compress.quant.scales import check_range
from compress.runtime.layout import Layout, layout_for
from compress.stage import DENSE, QUANTIZED, Context, Metrics
from compress.writer import TensorWriter

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1 << 20
"""Weights worked on at a time."""
LARGEST_BLOCK = 128


@dataclass(frozen=True)
class Placement:
    """Which weight goes on which grid, and what is known of it already.

    Attributes:
        grids: module path -> grid, for linear layers, embedding and head.
        activations: what linear layers do with their inputs: None, "int8_token" or "int8_static".
        solved: module path -> codes chosen by an algorithm; what is not there is rounded to nearest.
        dense: parameter name -> tensor that takes the place of the checkpoint's own (folded norms, trained biases).
        errors: module path -> relative error of weights with scales folded into them, which are not the checkpoint's.
    """

    grids: Mapping[str, Grid]
    activations: str | None = None
    solved: Mapping[str, Encoded] = field(default_factory=dict)
    dense: Mapping[str, Tensor] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)


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
    # what a model computes in, which not all that is stored must lie in: 4-bit layers take no other
    dtype = getattr(torch, checkpoint.dtype_name)
    linears = set(linear_paths(checkpoint.config))
    left_dense = _left_dense(checkpoint, placement, linears)
    chosen = {path: grid for path, grid in placement.grids.items() if path not in left_dense}
    if not chosen:
        raise UserError(
            "no linear layer of this model has a shape that runs on this grid.", "Quantize with another one."
        )
    layout = layout_for(chosen, linears - set(left_dense), placement.activations)
    # what an algorithm has chosen is not chosen again in the same way for sure; rounding to nearest is
    data_free = not placement.solved and not placement.dense
    writer = TensorWriter(
        context.folder, _names(checkpoint, chosen, placement, layout), journal=context.scratch if data_free else None
    )
    facts: dict[str, dict[str, Any]] = dict(writer.done)
    if facts:
        context.progress.say(f"goes on at tensor {len(facts) + 1} of {len(checkpoint.shards)}")
    with context.progress.bar("quantizing", len(checkpoint.shards)) as advance:
        advance(len(facts))
        for stored_name, original in checkpoint.tensors(without=writer.done):
            name = architecture.parameter(stored_name)
            path = name.removesuffix(".weight")
            tensor = placement.dense[name].detach().cpu() if name in placement.dense else original
            facts[stored_name] = {}
            if path in chosen:
                # [out, in], as bitsandbytes and we hold a linear
                weight = tensor.t().contiguous() if architecture.modules.conv1d and path in linears else tensor
                grid = chosen[path]
                encoded = placement.solved.get(path) or encode_rows(grid, weight)
                encoded = replace(encoded, dtype=dtype)
                for part, value in layout.on_disk(name, encoded, grid).items():
                    writer.add(part, value)
                known = placement.errors.get(path)
                error = relative_error(weight, grid.decode(encoded)) if known is None else known
                if not math.isfinite(error):
                    check_range(path, weight, grid)
                facts[stored_name] = {"error": error, "bytes": encoded.bytes(), "weights": weight.numel()}
            elif not architecture.is_tied_copy(checkpoint.config, stored_name):
                writer.add(stored_name, tensor.to(dtype if original.is_floating_point() else original.dtype))
            writer.step(stored_name, facts[stored_name])
            advance(1)
    writer.close()
    checkpoint.copy_sidecars(context.folder)
    for said in _told(left_dense, linears):
        context.progress.say(said)
    described = layout.config(chosen, checkpoint.dtype_name, left_dense)
    write_config(context.folder, checkpoint.config, {"quantization_config": described})
    found = {architecture.parameter(name).removesuffix(".weight"): facts[name] for name in sorted(facts) if facts[name]}
    errors = {path: fact["error"] for path, fact in found.items()}
    bits = 8 * sum(fact["bytes"] for fact in found.values())
    metrics = {
        "left_dense": left_dense,
        "grids": {path: grid.name for path, grid in sorted(chosen.items())},
        "bits_per_weight": bits / sum(fact["weights"] for fact in found.values()),
        "mean_relative_error": sum(errors.values()) / len(errors),
        "relative_error": errors,
    }
    return Checkpoint(context.folder, (checkpoint.traits - {DENSE}) | {QUANTIZED} | traits, checkpoint.name), metrics


def _names(checkpoint: Checkpoint, chosen: Mapping[str, Grid], placement: Placement, layout: Layout) -> Iterator[str]:
    """Of all tensors that will be written."""
    architecture = adapter_for(checkpoint.config)
    for stored_name in checkpoint.shards:
        name = architecture.parameter(stored_name)
        path = name.removesuffix(".weight")
        grid = chosen.get(path)
        if grid is None:
            yield stored_name
        else:
            # a grid has the same parts for a weight of any shape
            encoded = placement.solved.get(path) or grid.encode(torch.zeros(32, LARGEST_BLOCK))
            yield from layout.on_disk(name, encoded, grid)


def encode_rows(grid: Grid, weight: Tensor) -> Encoded:
    """`grid.encode`, a few rows at a time, so that what it needs on the way stays small.

    4-bit tables are left whole: their kernel needs nothing on the way, and scales of scales run over all rows.
    """
    rows = max(1, CHUNK // max(1, weight.shape[1]))
    if isinstance(grid, FourBit) or len(weight) <= rows:
        return grid.encode(weight)
    pieces = [grid.encode(piece) for piece in torch.split(weight, rows)]
    parts = {part: torch.cat([piece.parts[part] for piece in pieces]) for part in pieces[0].parts}
    return Encoded(parts, weight.shape, weight.dtype)


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
            if not fits(placement.grids[path], shape, path in linears):
                left.append(path)
    return left


def _told(left_dense: Sequence[str], linears: AbstractSet[str]) -> Iterator[str]:
    """What stays dense, in words."""
    inside = linears & set(left_dense)
    if inside:
        yield f"{len(inside)} of {len(linears)} layers stay dense: their shapes do not fit the grid"
    for path in sorted(set(left_dense) - inside):
        yield f"{path} stays dense: its shape does not fit the grid"


def relative_error(weight: Tensor, decoded: Tensor) -> float:
    """||W - Q(W)|| / ||W||, in fp32 for as many rows at a time as stay in the processor's cache."""
    squares = torch.zeros(2, dtype=torch.float64)
    rows = max(1, CHUNK // max(1, weight.shape[1]))
    for w, d in zip(torch.split(weight, rows), torch.split(decoded, rows), strict=True):
        exact = w.float()
        squares += torch.stack([(exact - d).norm(), exact.norm()]).double() ** 2
    return float((squares[0] / squares[1].clamp_min(1e-60)).sqrt())
