"""How important a group is, from statistics of a few calibration batches. Higher is more important.

Symbols: x_j the activation of feature j (an MLP neuron, an entry of a head's output, a residual channel); W_out the
projection that reads the features, [out, features]; W_in a projection that computes them, [features, in]. Weights are
in nn.Linear's orientation (transpose a Conv1D's). All results are fp32 (norms of bf16 would lose ties).

    activation   ||x_j||: mean of |x_j| over the sequence, L2 over the batch     Minitron, arXiv 2407.14679, section 2.2
    weighted     ||x_j|| * ||W_out[:, j]|| (+ ||W_in[j] * ||z|| ||)              Wanda's |W| * ||x||, arXiv 2306.11695,
                                                                                 section 3, as norms over a structure
    magnitude    sqrt(||W_out[:, j]||^2 + sum ||W_in[j]||^2)                     the data-free baseline
    random       uniform, seeded                                                 the floor every method must beat
    influence    1 - E[cos(layer's input, layer's output)]                       ShortGPT, arXiv 2403.03853, section 3
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm


def activation_energy(activations: Tensor, mask: Tensor | None = None) -> Tensor:
    """One batch's part of the activation importance: sum over sequences of (mean over tokens of |x|)^2.

    Batches add up; `activation` makes the score of the sum. Minitron (arXiv 2407.14679, section 2.2) found the pair
    L2 over the batch, mean over the sequence best of those it tried.

    Args:
        activations: [batch, sequence, features].
        mask: [batch, sequence], true for tokens that count; a sequence without any counts nothing.

    Returns:
        [features], fp32.
    """
    magnitudes = activations.float().abs()
    if mask is None:
        return magnitudes.mean(dim=1).square().sum(dim=0)
    weight = mask.to(magnitudes).unsqueeze(-1)
    # where, not a product: padding may hold inf or NaN
    total = torch.where(weight > 0, magnitudes, 0.0).sum(dim=1)
    return (total / weight.sum(dim=1).clamp_min(1.0)).square().sum(dim=0)


def activation(energy: Tensor) -> Tensor:
    """Activation importance [features] from the sum of all batches' `activation_energy`."""
    return energy.float().sqrt()


def weighted(
    norm: Tensor, out_weight: Tensor, in_weights: Sequence[Tensor] = (), in_norm: Tensor | None = None
) -> Tensor:
    """Weight times activation: what the features contribute to the projection that reads them.

    Wanda (arXiv 2306.11695, section 3) scores a weight |W_ij| * ||x_j||; over the column that goes with feature j, the
    L2 norm of those scores is ||x_j|| * ||W_out[:, j]||. For an MLP the rows of the projections that compute the
    feature (gate and up) go with it and add theirs.

    Args:
        norm: [features], norm of each feature's activation.
        out_weight: [out, features].
        in_weights: [features, in] each.
        in_norm: [in], norm of what `in_weights` read; default: ones.

    Returns:
        [features], fp32.
    """
    score: Tensor = norm.float() * vector_norm(out_weight.float(), dim=0)
    for weight in in_weights:
        rows = weight.float() if in_norm is None else weight.float() * in_norm.float()
        score = score + vector_norm(rows, dim=1)
    return score


def magnitude(out_weight: Tensor, in_weights: Sequence[Tensor] = ()) -> Tensor:
    """L2 norm of all weights that removing a feature removes: [features], fp32.

    Args:
        out_weight: [out, features].
        in_weights: [features, in] each.
    """
    squared = out_weight.float().square().sum(dim=0)
    for weight in in_weights:
        squared = squared + weight.float().square().sum(dim=1)
    return squared.sqrt()


def random(groups: int, seed: int) -> Tensor:
    """Uniform scores [groups], the same for the same seed on every machine (always drawn on the CPU)."""
    return torch.rand(groups, generator=torch.Generator().manual_seed(seed))


def block_influence(cosine: Tensor) -> Tensor:
    """Importance of layers from the mean cosine similarity of their input and output, [layers] -> [layers].

    Block Influence, ShortGPT (arXiv 2403.03853, section 3): a layer that hardly turns its input can go.
    """
    return 1.0 - cosine.float()


def by_group(scores: Tensor, groups: int) -> Tensor:
    """Scores of features gathered into groups of neighbours: L2 over each group, [..., features] -> [..., groups].

    With `groups` = KV heads, scores of the output projection's input [heads * head_dim] become scores of KV groups,
    since the query heads that share a KV head are neighbours in every family.

    Raises:
        ValueError: the features do not divide into that many groups.
    """
    if scores.shape[-1] % groups:
        raise ValueError(f"{scores.shape[-1]} features do not divide into {groups} groups")
    gathered: Tensor = vector_norm(scores.float().reshape(*scores.shape[:-1], groups, -1), dim=-1)
    return gathered
