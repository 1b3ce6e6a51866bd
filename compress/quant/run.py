"""The work of the post-training stages: fold, choose codes, write."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.arch import adapter_for
from compress.arch.linears import linear_paths
from compress.calibrate import calibration_windows
from compress.grids import Encoded, Grid, Scales, fits, grid_named
from compress.quant.calibrated import calibrate, weight_of
from compress.quant.coupled import Outputs
from compress.quant.encode import Placement, encode_checkpoint, linear_grids
from compress.quant.outer import put_outer_on_grids
from compress.quant.output_moments import output_moments
from compress.quant.solve import Calibration, Solved
from compress.quant.stage import Activations, Algorithm, OneGrid, PostTraining, Quantizing, Scaling
from compress.runtime.encoded import INPUT_ABSMAX
from compress.runtime.loading import load_model
from compress.stage import NF4_WEIGHTS, Advance, Context, Metrics, Progress

if TYPE_CHECKING:
    from compress.checkpoint import Checkpoint


def post_training(checkpoint: Checkpoint, stage: OneGrid, context: Context) -> tuple[Checkpoint, Metrics]:
    """Quantize as `stage` says."""
    grids = linear_grids(checkpoint.config, grid_named(stage.grid_name))
    if stage.embedding is not None:
        grids |= outer_grids(checkpoint, grid_named(stage.embedding))
    traits = stage.gives & {NF4_WEIGHTS}
    if not stage.reads:
        return encode_checkpoint(checkpoint, Placement(grids, _activations(stage)), traits, context)
    start = solve_layers(checkpoint, grids, stage, context)
    placement = Placement(grids, _activations(stage), start.encoded(), start.folded, start.weight_errors)
    quantized, metrics = encode_checkpoint(checkpoint, placement, traits, context)
    return quantized, metrics | start.details


def calibration_of(stage: Quantizing) -> Calibration:
    """The stage's fields as the walk reads them."""
    given = stage.calibration
    return Calibration(
        algorithm=stage.algorithm,
        damping=given.damping,
        absorb=given.absorb,
        ridge=given.ridge,
        rounds=given.rounds,
        first_token=given.first_token,
        scaling=stage.scaling,
        activations=stage.activations,
    )


@dataclass
class Start:
    """Calibrated codes of all weights on grids, with what training needs to go on from them."""

    grids: dict[str, Grid]
    levels: dict[str, Tensor] = field(default_factory=dict)
    scales: dict[str, Scales] = field(default_factory=dict)
    goals: dict[str, Tensor] = field(default_factory=dict)
    plain: dict[str, Tensor] = field(default_factory=dict)
    """The dense weights themselves, scales folded in, where there are such scales and training follows: what is in no
    checkpoint is kept for the errors that are reported."""
    folded: dict[str, Tensor] = field(default_factory=dict)
    """Norms and biases that have taken scales in."""
    weight_errors: dict[str, float] = field(default_factory=dict)
    """Of the weights, if scales were folded into them: the checkpoint's own are no measure any more."""
    details: Metrics = field(default_factory=dict)
    input_ranges: dict[str, float] = field(default_factory=dict)
    """Largest magnitude of each layer's inputs, where one is set for all tokens."""

    def encoded(self, paths: Iterable[str] | None = None) -> dict[str, Encoded]:
        """The codes as they are stored, of all or of those at `paths`."""
        wanted = self.levels if paths is None else [path for path in paths if path in self.levels]
        packed = {p: self.grids[p].pack(self.levels[p], self.scales[p], torch.float32) for p in wanted}
        return {p: with_range(encoded, self.input_ranges.get(p)) for p, encoded in packed.items()}


def solve_layers(
    checkpoint: Checkpoint,
    grids: Mapping[str, Grid],
    stage: Quantizing,
    context: Context,
    goals: bool = False,
) -> Start:
    """Choose the codes of all weights on calibration text, layer by layer; `goals` keeps what the linear ones aim at.

    Embedding and head come first, so that the layers make up for what their rounding costs.
    """
    context.own_text()  # written before there are two models in memory
    student = load_model(checkpoint.folder, device=context.fabric.device)
    dense = load_model(checkpoint.folder, device=context.fabric.device)
    transposed = adapter_for(checkpoint.config).modules.conv1d
    inside = set(linear_paths(checkpoint.config))
    shapes = {p: weight_of(student.get_submodule(p), transposed and p in inside).shape for p in grids}
    start = Start({path: grid for path, grid in grids.items() if fits(grid, shapes[path], path in inside)})
    fitting = {path: grid for path, grid in start.grids.items() if path in inside}
    outer = {path: grid for path, grid in start.grids.items() if path not in inside}
    tokens = stage.calibration.enough(max((shapes[path][1] for path in fitting), default=0))
    if tokens < stage.calibration.tokens:
        context.progress.say(f"{tokens:,} of {stage.calibration.tokens:,} calibration tokens are enough for its layers")
    windows = calibration_windows(context, tokens, stage.calibration.length)
    errors: dict[str, float] = {}
    plain: dict[str, float] = {}
    moved: dict[str, float] = {}
    layers = adapter_for(checkpoint.config).shape(checkpoint.config).layers

    def found(path: str, layer: Solved) -> None:
        start.levels[path] = layer.levels.to(torch.float16).cpu()
        start.scales[path] = layer.scales.to("cpu")
        if goals and path in inside:
            start.goals[path] = layer.goal.to("cpu", copy=True)  # it may be the model's own, which goes on its grid
            if stage.scaling is not Scaling.none:
                start.plain[path] = layer.plain.to(torch.float16).cpu()
        errors[path], plain[path], moved[path] = layer.error, layer.error_rtn, layer.weight_error

    if outer:
        with context.progress.bar("calibrating embedding and head", len(outer)) as advance:
            put_outer_on_grids(student, outer, windows, calibration_of(stage), found, advance)
    outputs = moments_of_outputs(dense, fitting, stage, context)
    with context.progress.bar("calibrating", layers) as advance:
        done = layer_by_layer(errors, plain, context.progress, advance)
        start.input_ranges = calibrate(student, dense, fitting, windows, calibration_of(stage), found, done, outputs)
    if stage.scaling is not Scaling.none:
        start.folded, start.weight_errors = folded(student, checkpoint, start), moved
    if errors:
        worst = max(errors, key=errors.__getitem__)
        context.progress.say(
            f"error of what the layers compute: {share(fmean(errors.values()))} of its energy, rounded to nearest "
            f"{share(fmean(plain.values()))}; most in {worst} ({share(errors[worst])}, rounded {share(plain[worst])})"
        )
    start.details = {"output_error": errors, "output_error_rtn": plain, "calibration_tokens": windows.numel()}
    return start


def moments_of_outputs(
    model: Any, paths: Collection[str], stage: Quantizing, context: Context
) -> dict[str, Outputs] | None:
    """What the outputs of the layers at `paths` do to the answers of `model`, where the stage asks for that."""
    calibration = stage.calibration
    if not calibration.output_tokens or stage.algorithm is not Algorithm.gptq:
        return None
    windows = calibration_windows(context, calibration.output_tokens, calibration.length)
    with context.progress.bar("what outputs do to the answers", len(windows)) as advance:
        found = output_moments(model, paths, windows, context.seed, advance)
    if missing := len(set(paths) - found.keys()):
        context.progress.say(f"{missing} layers are rounded row by row: gradients at their outputs are not finite")
    return found


def layer_by_layer(
    errors: Mapping[str, float], plain: Mapping[str, float], progress: Progress, advance: Advance
) -> Advance:
    """An `advance` that says of every layer that is done what it loses, and what rounding to nearest would have lost.

    Both map paths of linear layers to the error of their outputs, as a fraction of its energy, and grow as layers are
    done.
    """
    told, layer = set(errors), itertools.count()

    def done(units: float) -> None:
        advance(units)
        number, new = next(layer), errors.keys() - told
        told.update(new)
        if new:
            worst = max(new, key=errors.__getitem__)
            now, before = (share(fmean(each[path] for path in new)) for each in (errors, plain))
            most = f"{worst.rpartition('.')[2]} ({share(errors[worst])})"
            progress.say(f"layer {number}: error {now}, rounded to nearest {before}; most in {most}")

    return done


def share(fraction: float) -> str:
    """In percent: "2.1%", "0.0054%", "130%"."""
    return f"{100 * fraction:.2g}%" if fraction < 0.995 else f"{100 * fraction:,.0f}%"


def with_range(encoded: Encoded, largest: float | None) -> Encoded:
    """The layer with the static range of its inputs beside it, where it has one."""
    if largest is None:
        return encoded
    return replace(encoded, parts={**encoded.parts, INPUT_ABSMAX: torch.tensor([largest], dtype=torch.float32)})


def folded(model: Any, checkpoint: Checkpoint, start: Start) -> dict[str, Tensor]:
    """Parameters inside the layers that are not encoded: norms and biases have taken scales in."""
    layers = adapter_for(checkpoint.config).modules.layers
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(f"{layers}.") and name.removesuffix(".weight") not in start.levels
    }


def outer_grids(checkpoint: Checkpoint, grid: Grid) -> dict[str, Grid]:
    """Embedding, and head if it is a tensor of its own."""
    modules = adapter_for(checkpoint.config).modules
    paths = [modules.embedding] if checkpoint.config.tie_word_embeddings else [modules.embedding, modules.head]
    return dict.fromkeys(paths, grid)


def _activations(stage: PostTraining) -> str | None:
    return None if stage.activations is Activations.none else stage.activations.value
