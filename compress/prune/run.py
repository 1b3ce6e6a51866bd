"""Score, plan, cut: the work of the pruning stage."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from compress.arch import Widths, adapter_for
from compress.calibrate import calibration_windows
from compress.checkpoint import PLAN, Checkpoint, write_config
from compress.data.windows import CALIBRATION_WINDOW, readable
from compress.prune.compensate import Fit, compensate
from compress.prune.latency import Clock, cut_kinds, fit_model, solve_latency, timings
from compress.prune.nested import drop_weights, hand_over, run_inside
from compress.prune.plan import Plan, compose, select
from compress.prune.scoring import Criteria, score
from compress.prune.steps import between
from compress.prune.surgery import prune_tensor
from compress.runtime.loading import load_model, load_original
from compress.stage import PRUNED, Context, Metrics
from compress.train.student import write_dense
from compress.writer import TensorWriter

if TYPE_CHECKING:
    from compress.prune.stage import Compensate, Prune
    from compress.prune.steps import PruneInSteps


def prune(checkpoint: Checkpoint, widths: Widths, settings: Prune, context: Context) -> tuple[Checkpoint, Metrics]:
    """Write the pruned checkpoint into the stage's folder."""
    criteria = Criteria(settings.importance, settings.layer_importance, settings.removal_tokens, context.seed)
    architecture = adapter_for(checkpoint.config)
    shape = architecture.shape(checkpoint.config)
    windows = calibration_windows(context, settings.calibration_tokens, readable(CALIBRATION_WINDOW, checkpoint.config))
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


def widths_for_latency(checkpoint: Checkpoint, settings: Prune, context: Context) -> tuple[Widths, Metrics]:
    """Time models of this machine, and solve for the widths."""
    assert settings.latency is not None
    model = load_model(checkpoint.folder, device=context.fabric.device)
    kinds = cut_kinds(settings.share, settings.target().explicit)
    with context.progress.bar("timing models", timings(kinds)) as advance:
        clock = Clock(model, adapter_for(checkpoint.config), advance)
        fitted = fit_model(clock.shape.widths, kinds, clock.possible, clock)
        solved = solve_latency(
            settings.latency, fitted, lambda keep, count: settings.solved(checkpoint.config, keep, count), clock
        )
    return solved.widths, solved.facts(settings.latency) | {"dense_seconds_per_token": clock.dense_seconds}


def cut(checkpoint: Checkpoint, plan: Plan, context: Context) -> Checkpoint:
    """Apply a plan tensor by tensor, in the type that the config names: the model is not loaded."""
    architecture, dtype = adapter_for(checkpoint.config), getattr(torch, checkpoint.dtype_name)
    writer = TensorWriter(context.folder, checkpoint.shards)
    with context.progress.bar("cutting", len(checkpoint.shards)) as advance:
        for name, tensor in checkpoint.tensors():
            kept = prune_tensor(name, tensor, plan, architecture, checkpoint.config)
            if kept is not None and not architecture.is_tied_copy(checkpoint.config, name):
                path, value = kept
                writer.add(path, value.to(dtype) if value.is_floating_point() else value)
            advance(1)
    writer.close()
    checkpoint.copy_sidecars(context.folder)
    write_config(context.folder, architecture.pruned_config(checkpoint.config, plan))
    (context.folder / PLAN).write_text(from_the_original(checkpoint, plan).to_json() + "\n", encoding="utf-8")
    return Checkpoint(context.folder, checkpoint.traits | {PRUNED}, checkpoint.name)


def from_the_original(checkpoint: Checkpoint, plan: Plan) -> Plan:
    """`plan` of a checkpoint that may have been cut before, as one cut of the model the chain began with."""
    file = checkpoint.folder / PLAN
    earlier = PRUNED in checkpoint.traits and file.is_file()
    return compose(Plan.from_json(file.read_text(encoding="utf-8")), plan) if earlier else plan


def refit(checkpoint: Checkpoint, settings: Compensate, context: Context) -> tuple[Checkpoint, Metrics]:
    """Compensate the checkpoint that pruning has just left."""
    plan = Plan.from_json((checkpoint.folder / PLAN).read_text(encoding="utf-8"))
    windows = calibration_windows(context, settings.calibration_tokens, readable(CALIBRATION_WINDOW, checkpoint.config))
    student = load_model(checkpoint.folder, device=context.fabric.device)
    teacher = load_original(context.original, context.fabric.device)
    with context.progress.bar("least squares, layer by layer", teacher.config.num_hidden_layers) as advance:
        fit = Fit(settings.ridge_for(windows.numel()), settings.absorb, settings.read_ridge)
        compensate(student, teacher, plan, windows, fit, advance)
    return write_dense(student, checkpoint, context), {"calibration_tokens": windows.numel()}


def run_steps(checkpoint: Checkpoint, settings: PruneInSteps, context: Context) -> tuple[Checkpoint, Metrics]:
    """Cut a part, compensate, heal; until the last width is reached."""
    config = checkpoint.config
    architecture = adapter_for(config)
    path = between(config, settings.widths(config), settings.steps)
    current, rows, told, curve = checkpoint, list[Metrics](), list[Metrics](), list[Any]()
    heal = settings.healing(1 / len(path))
    for step, widths in enumerate(path):
        context.progress.say(f"step {step + 1} of {len(path)}")

        def cut_part(c: Checkpoint, inner: Context, widths: Widths = widths) -> tuple[Checkpoint, Metrics]:
            return prune(c, widths, settings.prune, inner)

        seed = context.seed + step  # the next part of the text
        cut_now, metrics = run_inside(f"{step}-cut", cut_part, current, context, seed)
        if settings.compensate is not None:
            cut_now, _ = run_inside(f"{step}-compensated", settings.compensate.run, cut_now, context, seed)
        current, trained = run_inside(f"{step}-healed", heal.run, cut_now, context, seed)
        for part in ("cut", "compensated"):
            drop_weights(context.scratch / f"{step}-{part}")
        curve += trained.pop("curve", [])
        kept = architecture.non_embedding_parameters(config, widths) / architecture.non_embedding_parameters(config)
        rows.append({"widths": asdict(widths), "kept_fraction": kept, **trained})
        told.append(metrics)
    plan = Plan.from_json((current.folder / PLAN).read_text(encoding="utf-8"))
    total = {key: sum(row[key] for row in rows) for key in ("steps", "train_tokens")}
    return hand_over(current, context), {
        **total,
        "curve": curve,
        "tokens_per_second": rows[-1]["tokens_per_second"],
        "resumed_at_step": 0,
        "widths": asdict(path[-1]),
        "widths_before": told[0]["widths_before"],
        "kept_fraction": rows[-1]["kept_fraction"],
        "dropped_layers": sorted(set(range(len(plan.mlp))) - set(plan.layers)),
        "layer_influence": told[0]["layer_influence"],
        "plan": json.loads(plan.to_json()),
        "cuts": rows,
    }
