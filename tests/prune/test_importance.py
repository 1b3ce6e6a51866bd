from __future__ import annotations

import pytest
import torch

from compress.arch import Axis
from compress.prune import importance

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def test_activation_is_l2_over_the_batch_of_the_mean_over_the_sequence():
    x = randn(5, 7, 3)
    expected = [sum((sum(abs(x[b, s, f]) for s in range(7)) / 7) ** 2 for b in range(5)) ** 0.5 for f in range(3)]
    score = importance.activation(importance.activation_energy(x))
    torch.testing.assert_close(score, torch.tensor(expected))
    in_two_batches = importance.activation_energy(x[:2]) + importance.activation_energy(x[2:])
    torch.testing.assert_close(importance.activation(in_two_batches), score)


def test_padding_does_not_count():
    x, mask = randn(2, 6, 4), torch.ones(2, 6)
    mask[1, 3:] = 0
    padded = x.clone()
    padded[1, 3:] = float("nan")
    expected = importance.activation_energy(x[:1]) + importance.activation_energy(x[1:, :3])
    torch.testing.assert_close(importance.activation_energy(padded, mask), expected)
    assert importance.activation_energy(x, torch.zeros(2, 6)).tolist() == [0.0] * 4


def test_wanda_is_the_norm_of_the_scores_of_a_column():
    x, out = randn(5, 7, 4), randn(6, 4)
    norms = x.flatten(0, 1).norm(dim=0)
    expected = (out.abs() * norms).square().sum(0).sqrt()
    torch.testing.assert_close(importance.wanda(x.square().sum((0, 1)), out.norm(dim=0)), expected)


def test_squares_follow_the_layout():
    weight = randn(3, 12)
    axis = Axis("heads", blocks=3, unit=2)  # query, key and value of two heads
    found = importance.group_squares(weight, axis, 1, 2)
    first = weight[:, [0, 1, 4, 5, 8, 9]].square().sum()
    torch.testing.assert_close(found, torch.stack([first, weight.square().sum() - first]))


def test_the_best_block_goes():
    scores = importance.contiguous(torch.tensor([0.3, 0.1, 0.2]), 2)
    assert scores.tolist() == [1, 0, 0, 1]


def test_random_is_seeded():
    assert torch.equal(importance.random(9, seed=3), importance.random(9, seed=3))
    assert not torch.equal(importance.random(9, seed=3), importance.random(9, seed=4))


def test_block_influence_is_zero_for_a_layer_that_does_nothing():
    assert importance.block_influence(torch.tensor([1.0, 0.25])).tolist() == [0.0, 0.75]


def test_groups_gather_neighbours():
    scores = torch.tensor([[3.0, 4, 0, 0, 5, 12]])
    assert importance.by_group(scores, 3).tolist() == [[5.0, 0.0, 13.0]]
    with pytest.raises(ValueError, match="6 features"):
        importance.by_group(scores, 4)


def test_scores_are_fp32():
    half = randn(4, 4).bfloat16()
    assert importance.wanda(half[0], half[1].abs()).dtype is torch.float32
    assert importance.group_squares(half, Axis("mlp"), 0, 4).dtype is torch.float32
    assert importance.activation_energy(half[None]).dtype is torch.float32
    assert importance.by_group(half, 2).dtype is torch.float32
