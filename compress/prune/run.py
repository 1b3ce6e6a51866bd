"""Score, plan, cut: the work of the pruning stage."""

from __future__ import annotations

import json
from dataclasses import asdict

from compress.arch import Widths, adapter_for
from compress.calibrate import calibration_windows
from compress.checkpoint import Checkpoint, TensorWriter, write_config
from compress.prune.plan import Plan, select
from compress.prune.statistics import collect
from compress.prune.surgery import prune_tensor
from compress.runtime.loading import load_model
from compress.stage import Context, Metrics


def prune(checkpoint: Checkpoint, widths: Widths, tokens: int, context: Context) -> tuple[Checkpoint, Metrics]:
    """Write the pruned checkpoint into the stage's folder."""
    architecture = adapter_for(checkpoint.config)
    shape = architecture.shape(checkpoint.config)
    windows = calibration_windows(context, tokens)
    with context.progress.bar("scoring", len(windows)) as advance:
        model = load_model(checkpoint.folder, device=context.fabric.device)
        scores = collect(model, architecture, windows, advance).scores()
        del model
    plan = select(scores, shape, widths)
    pruned = cut(checkpoint, plan, context)
    full = architecture.non_embedding_parameters(checkpoint.config)
    return pruned, {
        "widths": asdict(plan.widths),
        "widths_before": asdict(shape.widths),
        "kept_fraction": architecture.non_embedding_parameters(checkpoint.config, plan.widths) / full,
        "dropped_layers": sorted(set(range(shape.layers)) - set(plan.layers)),
        "layer_influence": None if scores.layers is None else scores.layers.tolist(),
        "plan": json.loads(plan.to_json()),
    }


def cut(checkpoint: Checkpoint, plan: Plan, context: Context) -> Checkpoint:
    """Apply a plan tensor by tensor; the model is not loaded."""
    architecture = adapter_for(checkpoint.config)
    writer = TensorWriter(context.folder)
    with context.progress.bar("cutting", len(checkpoint.shards)) as advance:
        for name, tensor in checkpoint.tensors():
            kept = prune_tensor(name, tensor, plan, architecture, checkpoint.config)
            if kept is not None:
                writer.add(*kept)
            advance(1)
    writer.close()
    checkpoint.copy_sidecars(context.folder)
    write_config(context.folder, architecture.pruned_config(checkpoint.config, plan))
    return Checkpoint(context.folder, checkpoint.traits, checkpoint.name)
