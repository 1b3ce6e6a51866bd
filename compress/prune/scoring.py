"""Scores by the criteria asked for, with no more passes over the text than they need."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.arch import Architecture, Shape, Widths
from compress.arch.shape import Kind
from compress.prune.criteria import Importance, LayerImportance
from compress.prune.gates import gate_scores
from compress.prune.importance import group_squares, random
from compress.prune.plan import Scores
from compress.prune.removal import greedy_removal, rounds
from compress.prune.statistics import Statistics, Turning, collect

if TYPE_CHECKING:
    from compress.stage import Progress


FORWARD = (Importance.activation, Importance.wanda)
GRADIENTS = (Importance.taylor, Importance.fisher)


@dataclass(frozen=True)
class Criteria:
    """What is scored by what.

    Attributes:
        groups: of neurons, KV groups, query heads and residual channels.
        layers: of layers.
        removal_tokens: calibration tokens the greedy choice of layers measures losses on.
        seed: of random scores.
    """

    groups: Importance = Importance.activation
    layers: LayerImportance = LayerImportance.block_influence
    removal_tokens: int = 2048
    seed: int = 0


@dataclass(frozen=True)
class Scored:
    """Scores, and what the pass over the text says about the layers besides."""

    scores: Scores
    influence: Tensor | None


def score(
    model: Any, architecture: Architecture, windows: Tensor, widths: Widths, criteria: Criteria, progress: Progress
) -> Scored:
    """Score what goes when a model is cut to `widths`.

    Args:
        model: causal language model.
        architecture: its family.
        windows: calibration tokens [n, length].
        widths: what stays; some criteria choose layers together, and need to know how many.
        criteria: by what.
        progress: shows how far it is.
    """
    shape = architecture.shape(model.config)
    remove = shape.layers - widths.layers
    turning = Turning(shape.layers, max(1, remove))
    looks = criteria.layers in (LayerImportance.block_influence, LayerImportance.angular)
    if criteria.groups in GRADIENTS:
        with progress.bar("scoring, forward and back", len(windows)) as advance:
            per_token = criteria.groups is Importance.fisher
            groups = gate_scores(model, architecture, windows, per_token, turning, advance)
    elif looks or criteria.groups in FORWARD:
        with progress.bar("scoring", len(windows)) as advance:
            statistics = collect(model, architecture, windows, turning, advance)
        groups = _groups(model, architecture, statistics, criteria)
    else:
        groups = _groups(model, architecture, None, criteria)
    layers = _layers(model, architecture, windows, turning, (remove, criteria), progress)
    return Scored(replace(groups, layers=layers), turning.influence() if turning.windows else None)


def _groups(model: Any, architecture: Architecture, statistics: Statistics | None, criteria: Criteria) -> Scores:
    if criteria.groups is Importance.magnitude:
        return magnitude_scores(model, architecture)
    if criteria.groups is Importance.random:
        return random_scores(architecture.shape(model.config), criteria.seed)
    assert statistics is not None
    if criteria.groups is Importance.wanda:
        return statistics.wanda(model, architecture)
    return statistics.activation()


def _layers(
    model: Any,
    architecture: Architecture,
    windows: Tensor,
    turning: Turning,
    asked: tuple[int, Criteria],
    progress: Progress,
) -> Tensor:
    remove, criteria = asked
    layers = architecture.shape(model.config).layers
    if criteria.layers is LayerImportance.random:
        return random(layers, criteria.seed)
    if criteria.layers is LayerImportance.perplexity:
        few = windows[: max(1, criteria.removal_tokens // windows.shape[1])]
        with progress.bar("removing layers one by one", rounds(layers, remove)) as advance:
            return greedy_removal(model, architecture, few, remove, advance)
    if criteria.layers is LayerImportance.angular:
        return turning.angular() if remove else torch.ones(layers)
    return turning.influence()


def magnitude_scores(model: Any, architecture: Architecture) -> Scores:
    """The norm of all weights that go with a group; of a residual channel through the whole model."""
    config = model.config
    shape = architecture.shape(config)
    sizes: dict[Kind, tuple[int, ...]] = {
        "mlp": (shape.layers, shape.mlp),
        "heads": (shape.layers, shape.kv_heads),
        "query_heads": (shape.layers, shape.heads),
        "hidden": (shape.hidden,),
    }
    squares = {kind: torch.zeros(size) for kind, size in sizes.items()}
    for name, parameter in model.named_parameters():
        layer, _ = architecture.split(name)
        for dim, axis in enumerate(architecture.axes(config, name) or ()):
            if axis.kind is None:
                continue
            found = group_squares(parameter.detach(), axis, dim, axis.groups(shape.widths)).cpu()
            rows = squares[axis.kind] if layer is None or axis.kind == "hidden" else squares[axis.kind][layer]
            rows += found
            if axis.kind == "query_heads":  # they go with their KV group
                squares["heads"][layer] += found.view(shape.kv_heads, shape.queries).sum(1)
    return Scores(**{kind: total.sqrt() for kind, total in squares.items()})


def random_scores(shape: Shape, seed: int) -> Scores:
    """Uniform scores of everything, a seed of its own for every kind."""
    return Scores(
        mlp=random(shape.layers * shape.mlp, seed).view(shape.layers, shape.mlp),
        heads=random(shape.layers * shape.kv_heads, seed + 1).view(shape.layers, shape.kv_heads),
        query_heads=random(shape.layers * shape.heads, seed + 2).view(shape.layers, shape.heads),
        hidden=random(shape.hidden, seed + 3),
    )
