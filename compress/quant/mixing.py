"""The work of mixed precision: sizes, sensitivities, the allocation, and then calibrated quantization on it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from compress.arch import adapter_for
from compress.arch.linears import linear_paths
from compress.calibrate import calibration_windows, input_grams
from compress.data.windows import CALIBRATION_WINDOW
from compress.durable import write_atomically
from compress.errors import UserError
from compress.grids import Grid, fits, grid_named
from compress.quant.allocation import Choice, allocate, smallest
from compress.quant.calibrated import weight_of
from compress.quant.encode import Placement, encode_checkpoint
from compress.quant.run import outer_grids, solve_layers
from compress.quant.scales import check_range
from compress.quant.sensitivity import error_of, loss_of, losses_of_outer, slopes
from compress.quant.stage import Algorithm
from compress.runtime.encoded import own_layout
from compress.runtime.loading import load_model
from compress.stage import Context, Metrics

if TYPE_CHECKING:
    from compress.checkpoint import Checkpoint
    from compress.quant.mixed import Budget, Mixed

MEASURED_TOKENS = 4096
"""Of the calibration text, that sensitivity is measured on."""
ENTRY_BYTES = 120
"""At most, of one tensor in a safetensors header besides its name."""
FILE_BYTES = 64
"""Of a safetensors file besides its tensors and their entries."""
KEPT = "allocation.json"
Losses = dict[str, dict[str, float]]


def mixed(checkpoint: Checkpoint, stage: Mixed, context: Context) -> tuple[Checkpoint, Metrics]:
    """Quantize as `stage` says."""
    grids, allocation = allocated(checkpoint, stage, context)
    start = solve_layers(checkpoint, grids, stage, context)
    quantized, metrics = encode_checkpoint(checkpoint, Placement(grids, None, start.encoded()), frozenset(), context)
    return quantized, metrics | start.details | allocation


def allocated(checkpoint: Checkpoint, stage: Budget, context: Context) -> tuple[dict[str, Grid], Metrics]:
    """Module path -> grid within the stage's budget, and what was measured for it.

    It is kept in the stage's scratch folder: a killed run does not measure again.
    """
    kept = context.scratch / KEPT
    if kept.exists():
        allocation: Metrics = json.loads(kept.read_text(encoding="utf-8"))
    else:
        allocation = _allocation(checkpoint, stage, context)
        write_atomically(kept, json.dumps(allocation))
    return {path: grid_named(choice["grid"]) for path, choice in allocation["chosen"].items()}, allocation


def _allocation(checkpoint: Checkpoint, stage: Budget, context: Context) -> Metrics:
    sizes = Sizes.of(checkpoint, stage)
    sizes.check(stage)
    losses = sensitivities(checkpoint, sizes, stage, context)
    choices = {
        path: [Choice(name, sizes.cost(path, name, stage), losses[path][name]) for name in grids]
        for path, grids in sizes.grids.items()
    }
    found = allocate(choices, sizes.budget(stage))
    assert found is not None  # else refused above
    return {
        "sensitivity": losses,
        "chosen": {path: {"grid": choice.grid, "loss": choice.loss} for path, choice in sorted(found.items())},
        "predicted_kl": sum(choice.loss for choice in found.values()),
    }


@dataclass
class Sizes:
    """Shapes of the tensors that go on a grid, and what each takes there."""

    grids: dict[str, dict[str, Grid]]
    """Module path -> the candidates whose runtimes take its shape, by name."""
    shapes: dict[str, tuple[int, int]]
    code_bytes: dict[tuple[str, tuple[int, int]], int]
    """Of a tensor by grid and shape."""
    entry_bytes: dict[tuple[str, str], int]
    """Of a tensor's names in the file, by path and grid."""
    rest: int
    """Bytes of what stays dense, and of its names in the file."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, stage: Budget) -> Sizes:
        """Read from the headers; no weight is read."""
        architecture = adapter_for(checkpoint.config)
        linears = set(linear_paths(checkpoint.config))
        fixed = None if stage.embedding is None else grid_named(stage.embedding)
        candidates = {name: grid_named(name) for name in stage.candidates}
        outer = set(outer_grids(checkpoint, next(iter(candidates.values()))))
        sizes = cls({}, {}, {}, {}, FILE_BYTES)
        for stored_name, file in checkpoint.shards.items():
            name = architecture.parameter(stored_name)
            path = name.removesuffix(".weight")
            with safe_open(file, "pt") as opened:
                found = opened.get_slice(stored_name)
                shape, dtype = tuple(found.get_shape()), found.get_dtype()
            if name == f"{architecture.modules.head}.weight" and checkpoint.config.tie_word_embeddings:
                continue  # a second copy, which is not written
            on = candidates if path in linears or fixed is None else {fixed.name: fixed}
            if path in linears or path in outer:
                rows, columns = shape[::-1] if architecture.modules.conv1d and path in linears else shape
                fitting = {label: grid for label, grid in on.items() if fits(grid, (rows, columns), path in linears)}
                if fitting:
                    sizes.grids[path], sizes.shapes[path] = fitting, (rows, columns)
                    for label, grid in fitting.items():
                        sizes.note(path, stored_name, label, grid)
                    continue
            sizes.rest += math.prod(shape) * _width(dtype) + len(stored_name) + ENTRY_BYTES
        if not sizes.grids:
            raise UserError(
                f"no tensor of this model has a shape that runs on any of {', '.join(stage.candidates)}.",
                "Give other quant.candidates.",
            )
        return sizes

    def note(self, path: str, stored_name: str, label: str, grid: Grid) -> None:
        """Learn what a tensor takes on one grid, by encoding zeros of its shape."""
        shape = self.shapes[path]
        encoded = grid.encode(torch.zeros(32, shape[1]))
        names = own_layout(stored_name, encoded)
        self.entry_bytes[path, label] = sum(len(name) + ENTRY_BYTES for name in names) + 16
        if (label, shape) not in self.code_bytes:
            self.code_bytes[label, shape] = grid.encode(torch.zeros(shape)).bytes()

    def cost(self, path: str, label: str, stage: Budget) -> int:
        """Bytes that count against the budget."""
        names = 0 if stage.megabytes is None else self.entry_bytes[path, label]
        return self.code_bytes[label, self.shapes[path]] + names

    def budget(self, stage: Budget) -> int:
        """Bytes for the tensors on grids."""
        if stage.megabytes is not None:
            return int(stage.megabytes * 1e6) - self.rest
        return int(stage.bits * self._weights() / 8)

    def _weights(self) -> int:
        return sum(rows * columns for rows, columns in self.shapes.values())

    def check(self, stage: Budget) -> None:
        """Refuse a budget that even the smallest grids do not keep to, before anything is measured."""
        least = smallest(
            {p: [Choice(name, self.cost(p, name, stage), 0.0) for name in grids] for p, grids in self.grids.items()}
        )
        if least <= self.budget(stage):
            return
        of = f"with {', '.join(stage.candidates)}"
        if stage.megabytes is not None:
            needed = _up((least + self.rest) / 1e6)
            raise UserError(
                f"stages.quant.megabytes={stage.megabytes} is too little: {of}, this model takes {needed} at least.",
                f"Give stages.quant.megabytes={needed} or more, or smaller quant.candidates.",
            )
        needed = _up(8 * least / self._weights())
        raise UserError(
            f"stages.quant.bits={stage.bits} is too little: {of}, this model takes {needed} bits a weight at least.",
            f"Give stages.quant.bits={needed} or more, or smaller quant.candidates.",
        )


def _up(value: float) -> float:
    """Rounded up to two decimals."""
    return -(-int(value * 1e6) // 10000) / 100


def _width(dtype: str) -> int:
    """Bytes of one number, from a safetensors type such as "BF16"."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) // 8 if digits else 1


def sensitivities(checkpoint: Checkpoint, sizes: Sizes, stage: Budget, context: Context) -> Losses:
    """What every tensor loses on every grid that it fits, in nats of KL per token."""
    linears = [path for path in linear_paths(checkpoint.config) if path in sizes.grids]
    tokens = min(MEASURED_TOKENS, stage.calibration.tokens)
    length = min(stage.calibration.length, CALIBRATION_WINDOW)
    windows = calibration_windows(context, tokens, length)
    model = load_model(checkpoint.folder, device=context.fabric.device).requires_grad_(False)
    with context.progress.bar("measuring gradients", len(windows)) as advance:
        found = slopes(model, windows, linears, context.seed, advance)
    losses: Losses = {}
    conv1d = adapter_for(checkpoint.config).modules.conv1d
    spreads = stage.algorithm is Algorithm.gptq
    widths = {path: sizes.shapes[path][1] for path in linears}
    with context.progress.bar("measuring sensitivity", len(sizes.grids)) as advance:
        for grams in input_grams(model, widths, context, tokens, length):
            for path, gram in grams.items():
                weight = weight_of(model.get_submodule(path), conv1d).float()
                for grid in sizes.grids[path].values():
                    check_range(path, weight, grid)
                losses[path] = {
                    name: loss_of(error_of(weight, grid, gram if spreads else None), gram, found.modules[path])
                    for name, grid in sizes.grids[path].items()
                }
                advance(1)
        for path in sizes.grids.keys() - set(linears):
            for grid in sizes.grids[path].values():
                check_range(path, model.get_submodule(path).weight, grid)
            losses[path] = losses_of_outer(model, path, found, sizes.grids[path])
            advance(1)
    return losses
