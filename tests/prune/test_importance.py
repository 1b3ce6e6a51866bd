from __future__ import annotations

import pytest
import torch

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


def test_weighted_is_the_norm_of_wanda_scores_of_what_goes():
    x, out, gate, up, z = randn(4).abs(), randn(6, 4), randn(4, 5), randn(4, 5), randn(5).abs()
    torch.testing.assert_close(importance.weighted(x, out), (out.abs() * x).square().sum(0).sqrt())
    rows = [(weight.abs() * z).square().sum(1).sqrt() for weight in (gate, up)]
    expected = importance.weighted(x, out) + rows[0] + rows[1]
    torch.testing.assert_close(importance.weighted(x, out, (gate, up), z), expected)
    # what a neuron that never fires, or whose column is zero, contributes downstream is nothing
    x[2], out[:, 1] = 0, 0
    assert importance.weighted(x, out)[[1, 2]].tolist() == [0, 0]


def test_magnitude_is_the_norm_of_all_weights_that_go():
    out, gate = randn(6, 4), randn(4, 5)
    expected = [torch.cat([out[:, j], gate[j]]).norm() for j in range(4)]
    torch.testing.assert_close(importance.magnitude(out, (gate,)), torch.stack(expected))


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
    assert importance.weighted(half[0], half, (half,)).dtype is torch.float32
    assert importance.magnitude(half).dtype is torch.float32
    assert importance.activation_energy(half[None]).dtype is torch.float32
    assert importance.by_group(half, 2).dtype is torch.float32
