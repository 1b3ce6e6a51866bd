"""Score, plan, cut: the work of the pruning stage."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from compress.arch import Widths, adapter_for
from compress.calibrate import calibration_windows
from compress.checkpoint import PLAN, Checkpoint, write_config
from compress.errors import UserError
from compress.prune.compensate import Fit, compensate
from compress.prune.plan import Plan, select
from compress.prune.scoring import Criteria, score
from compress.prune.surgery import prune_tensor
from compress.runtime.loading import load_model
from compress.stage import PRUNED, Context, Metrics
from compress.train.student import write_dense
from compress.writer import TensorWriter

if TYPE_CHECKING:
    from compress.prune.stage import Compensate


def prune(
    checkpoint: Checkpoint, widths: Widths, tokens: int, criteria: Criteria, context: Context
) -> tuple[Checkpoint, Metrics]:
    """Write the pruned checkpoint into the stage's folder."""
    architecture = adapter_for(checkpoint.config)
    shape = architecture.shape(checkpoint.config)
    windows = calibration_windows(context, tokens)
    model = load_model(checkpoint.folder, device=context.fabric.device)
    scored = score(model, architecture, windows, widths, criteria, context.progress)
    del model
    plan = select(scored.scores, shape, widths)
    pruned = cut(checkpoint, plan, context)
    full = architecture.non_embedding_parameters(checkpoint.config)
    return pruned, {
        "widths": asdict(plan.widths),
        "widths_before": asdict(shape.widths),
        "kept_fraction": architecture.non_embedding_parameters(checkpoint.config, plan.widths) / full,
        "dropped_layers": sorted(set(range(shape.layers)) - set(plan.layers)),
        "layer_influence": None if scored.influence is None else scored.influence.tolist(),
        "plan": json.loads(plan.to_json()),
    }


def cut(checkpoint: Checkpoint, plan: Plan, context: Context) -> Checkpoint:
    """Apply a plan tensor by tensor; the model is not loaded."""
    architecture = adapter_for(checkpoint.config)
    writer = TensorWriter(context.folder, checkpoint.shards)
    with context.progress.bar("cutting", len(checkpoint.shards)) as advance:
        for name, tensor in checkpoint.tensors():
            kept = prune_tensor(name, tensor, plan, architecture, checkpoint.config)
            if kept is not None:
                writer.add(*kept)
            advance(1)
    writer.close()
    checkpoint.copy_sidecars(context.folder)
    write_config(context.folder, architecture.pruned_config(checkpoint.config, plan))
    (context.folder / PLAN).write_text(plan.to_json() + "\n")
    return Checkpoint(context.folder, checkpoint.traits | {PRUNED}, checkpoint.name)


def refit(checkpoint: Checkpoint, settings: Compensate, context: Context) -> tuple[Checkpoint, Metrics]:
    """Compensate the checkpoint that pruning has just left."""
    plan = Plan.from_json((checkpoint.folder / PLAN).read_text())
    windows = calibration_windows(context, settings.calibration_tokens)
    if len(plan.mlp) != context.original.config.num_hidden_layers:
        raise UserError(
            "compensation fits a model to the one the run started from, and this one has been pruned more than once.",
            "Drop it: '~stages.compensate'.",
        )
    student = load_model(checkpoint.folder, device=context.fabric.device)
    teacher = load_model(context.original.folder, device=context.fabric.device)
    with context.progress.bar("least squares, layer by layer", teacher.config.num_hidden_layers) as advance:
        compensate(student, teacher, plan, windows, Fit(settings.ridge, settings.absorb), advance)
    return write_dense(student, checkpoint, context), {"calibration_tokens": windows.numel()}
