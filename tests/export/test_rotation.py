"""Rotated inputs and weights: the same products, no channel louder than the others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.export.rotation import BLOCK, Rotated, block_of, matrix, rotate, rotated_rows
from compress.grids.int8 import fake_quantize


@pytest.mark.parametrize(
    ("width", "block"), [(576, 64), (1536, 64), (80, 16), (96, 32), (7, 1), (1, 1), (32, 32), (4096, 64)]
)
def test_rotating_twice_gives_the_input_again_in_whole_blocks(width: int, block: int) -> None:
    assert block_of(width) == block <= BLOCK
    x = torch.randn(2, 3, width)
    turned = rotate(x, matrix(block))
    torch.testing.assert_close(rotate(turned, matrix(block)), x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    # nothing leaves its block
    x[..., :block] = 0
    assert torch.equal(rotate(x, matrix(block))[..., :block], x[..., :block])


@pytest.mark.parametrize("width", [576, 80, 7])
def test_a_rotated_layer_computes_what_the_layer_did(width: int) -> None:
    layer = nn.Linear(width, 24)
    x = torch.randn(5, width)
    before = layer(x)
    layer.weight = nn.Parameter(rotated_rows(layer.weight.detach()))
    torch.testing.assert_close(Rotated(layer, width)(x), before, rtol=1e-4, atol=1e-5)


def test_one_loud_channel_is_spread_over_its_block() -> None:
    x = torch.zeros(1, 128)
    x[0, 70] = 8.0
    turned = rotate(x, matrix(64))
    torch.testing.assert_close(turned.abs(), torch.cat([torch.zeros(1, 64), torch.ones(1, 64)], dim=1))


def test_tokens_with_loud_channels_of_their_own_lose_less_to_rounding() -> None:
    x = torch.randn(256, 512, generator=torch.Generator().manual_seed(0)) ** 5
    turn = matrix(64)
    plain = (fake_quantize(x) - x).square().sum()
    rotated = (rotate(fake_quantize(rotate(x, turn)), turn) - x).square().sum()
    assert rotated < plain / 4
