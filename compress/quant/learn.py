"""The work of quantization-aware training: a calibrated start, training, and the codes that come out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compress.arch.linears import linear_paths
from compress.grids import value_of
from compress.quant.encode import Placement, encode_checkpoint, relative_error
from compress.quant.fake import GridLinear, GridWeight, put_on_grid
from compress.quant.inputs import RoundedInputs
from compress.quant.kept import kept_start
from compress.quant.qat import LearnedThroughRounding, Trains
from compress.quant.run import Start, solve_layers, with_range
from compress.quant.stage import Activations
from compress.stage import NF4_WEIGHTS, Context, Metrics
from compress.train.fit import fit
from compress.train.student import load_student, load_teacher, windows_for

if TYPE_CHECKING:
    from compress.checkpoint import Checkpoint


def learn(checkpoint: Checkpoint, stage: LearnedThroughRounding, context: Context) -> tuple[Checkpoint, Metrics]:
    """Quantize as `stage` says."""
    windows = windows_for(stage.train, context)
    grids, chosen = stage.placement(checkpoint, context)
    outer = grids.keys() - set(linear_paths(checkpoint.config))
    start = kept_start(context.scratch, grids, lambda: solve_layers(checkpoint, grids, stage, context, goals=True))
    student = load_student(checkpoint, stage.train, context).requires_grad_(False)
    student.load_state_dict({k: v.float() for k, v in start.folded.items()}, strict=False)
    encoded = start.encoded(outer)
    for path in encoded:
        # the layers train around it
        student.get_submodule(path).weight.data.copy_(value_of(start.levels[path], start.scales[path]))
    weights = {path: trainable(student, path, start, stage) for path in list(start.goals)}
    put_on_grid(student, weights, RoundedInputs(stage.activations, start.input_ranges))
    choose_what_trains(student, stage)
    fitted = fit(student, load_teacher(stage.train, context), stage.loss, windows, stage.train, context)
    for path, weight in weights.items():
        levels, scales = weight.final()
        packed = weight.grid.pack(levels.cpu(), scales.to("cpu"), torch.float32)
        encoded[path] = with_range(packed, start.input_ranges.get(path))
        if path in start.plain:
            start.weight_errors[path] = relative_error(start.plain.pop(path), weight.grid.decode(packed))
    placement = Placement(
        grids=grids,
        activations=None if stage.activations is Activations.none else stage.activations.value,
        solved=encoded,
        dense=trained_beside(student, start.folded),
        errors=start.weight_errors,
    )
    on_tables = {grid.name for grid in grids.values()}
    plain = len(on_tables) == 1 and on_tables.pop().startswith(("nf4", "fp4")) and not outer
    traits = frozenset({NF4_WEIGHTS} if plain else ())
    quantized, metrics = encode_checkpoint(checkpoint, placement, traits, context)
    return quantized, metrics | start.details | chosen | fitted.metrics()


def trainable(student: nn.Module, path: str, start: Start, stage: LearnedThroughRounding) -> GridWeight:
    """The weight at `path` on its calibrated codes, ready to train."""
    device = next(student.parameters()).device
    # taken out of the start: the latents hold both from now on
    levels, goal = start.levels.pop(path).to(device), start.goals.pop(path).to(device)
    weight = GridWeight(levels, start.scales[path].to(device), goal, start.grids[path])
    if stage.trains is Trains.lora:
        weight.add_low_rank(stage.rank)
    return weight


def choose_what_trains(student: nn.Module, stage: LearnedThroughRounding) -> None:
    """Set requires_grad and rates: latents (or their low-rank change), scales, norms and biases of the layers."""
    for module in student.modules():
        if isinstance(module, GridLinear):
            weight = module.on_grid
            low_rank = list(weight.low_rank or [])
            table = weight.table
            spacing = float(table[-1] - table[0]) / (len(table) - 1)
            _rate(weight.latent, spacing if stage.trains is Trains.weights else 0.0)
            for factor in low_rank:
                _rate(factor, spacing)
            _rate(weight.factor, stage.scale_rate)
    for name, parameter in student.named_parameters():
        beside = ".on_grid." not in name and parameter.dim() == 1
        if beside:
            _rate(parameter, stage.norm_rate)


def _rate(parameter: nn.Parameter, factor: float) -> None:
    parameter.requires_grad_(factor > 0)
    parameter.rate_factor = factor  # type: ignore[attr-defined]


def trained_beside(student: nn.Module, changed: dict[str, Tensor]) -> dict[str, Tensor]:
    """What lies beside the codes, by the model's parameter names: norms and biases, which trained, and all that has
    taken scales in (a linear layer that fits no grid, in front of one that does, is among these)."""
    own = {name.replace(".on_grid.", "."): p.detach() for name, p in student.named_parameters()}
    beside = {name: tensor for name, tensor in own.items() if tensor.dim() == 1 and ".factor" not in name}
    return beside | {name: own[name] for name in changed if name in own}
