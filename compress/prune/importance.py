"""How important a group is, from statistics of a few calibration batches. Higher is more important.

Symbols: x_j the activation of feature j (an MLP neuron, an entry of a head's output, a residual channel as a norm puts
it out); W_out a projection that reads the features, [out, features]. Weights are in nn.Linear's
orientation (transpose a Conv1D's). All results are fp32 (norms of bf16 would lose ties).

    activation   ||x_j||: mean of |x_j| over the sequence, L2 over the batch     Minitron, arXiv 2407.14679, section 2.2
    wanda        ||x_j|| * ||W_out[:, j]||, x_j over all tokens                  Wanda's |W| * ||x||, arXiv 2306.11695,
                                                                                 section 3, as norms over a structure
    taylor       sqrt(E[(sum_t x_tj dL/dx_tj)^2]), E over windows (`gates`)      arXiv 1906.10771, section 3.2
    fisher       sqrt(E[(x_tj dL/dx_tj)^2]), E over tokens (`gates`)             arXiv 1801.05787, section 2.2
    magnitude    ||all weights that go with j||                                  the data-free baseline
    random       uniform, seeded                                                 the floor every method must beat

For layers:

    influence    1 - E[cos(layer's input, layer's output)]                       ShortGPT, arXiv 2403.03853, section 3
    angular      E[arccos cos(x_l, x_{l+n})] / pi, the block of n layers that    arXiv 2403.17887, section 3.2
                 turns the stream least goes
    perplexity   loss of the text without the layer, greedily one by one         SLEB, arXiv 2402.09025, section 3.3
                 (`removal`)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.linalg import vector_norm

if TYPE_CHECKING:
    from compress.arch import Axis


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


def wanda(square: Tensor, column: Tensor) -> Tensor:
    """Weight times activation: the size of what the features contribute to the projection that reads them.

    Wanda (arXiv 2306.11695, section 3) scores a weight |W_ij| * ||x_j||; over the column that goes with feature j, the
    L2 norm of those scores is ||x_j|| * ||W_out[:, j]||.

    Args:
        square: [features], sum of x_j^2 over all tokens.
        column: [features], norms of the columns of W_out.

    Returns:
        [features], fp32.
    """
    return square.float().sqrt() * column.float()


def group_squares(tensor: Tensor, axis: Axis, dim: int, groups: int) -> Tensor:
    """Sum of squares of the slices that go with each group along one dimension of a tensor: [groups], fp32.

    Args:
        tensor: any parameter.
        axis: layout of dimension `dim`.
        dim: the dimension.
        groups: how many there are.
    """
    others = [d for d in range(tensor.dim()) if d != dim]
    squares = tensor.float().square()
    rows: Tensor = squares.sum(others) if others else squares
    return rows.view(axis.blocks, groups, axis.unit).sum((0, 2))


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


def contiguous(distances: Tensor, block: int) -> Tensor:
    """Importance of layers under which the best block of neighbours goes: [layers].

    Args:
        distances: [layers - block + 1], angular distance of what enters and what leaves the block that begins there.
        block: layers in it.
    """
    scores = torch.ones(len(distances) + block - 1)
    start = int(distances.argmin())
    scores[start : start + block] = 0
    return scores
