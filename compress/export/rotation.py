"""Inputs rotated before they are rounded, and the weights that read them: one loud channel is spread over its block.

    y = W x = (W H)(H x)          H = blocks of n channels, each a Hadamard matrix / sqrt(n); H = H^T, H H = 1

INT8 gives every token one step, set by its loudest channel. What is tens of times as loud as its neighbours leaves them
a few codes; over n channels it is sqrt(n) times quieter. Rows of weights gain in the same way. Exact for every
architecture and without any text; it costs n multiplications for each input, beside the thousands of its products.

QuaRot, arXiv 2404.00456, section 4 (the rotations made while running).
"""

from __future__ import annotations

from functools import cache

import torch
from scipy.linalg import hadamard
from torch import Tensor, nn

BLOCK = 64
"""Widest block: on SmolLM2-135M blocks of 32 leave a quarter more of what rounding costs, whole rows a tenth less."""


def block_of(width: int) -> int:
    """Channels that are mixed with each other: the largest power of two that divides `width`, at most `BLOCK`."""
    return min(width & -width, BLOCK)


@cache
def matrix(block: int) -> Tensor:
    """Sylvester's Hadamard matrix, orthogonal and symmetric, fp32 [block, block]; the same tensor every time."""
    return torch.tensor(hadamard(block), dtype=torch.float32) / block**0.5


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """`x` [..., width] times `turn` [block, block], block by block. Applied twice it gives `x` again."""
    return (torch.unflatten(x, -1, (-1, len(turn))) @ turn).flatten(-2)


def rotated_rows(weight: Tensor) -> Tensor:
    """A weight [out, in] for rotated inputs, in fp32."""
    return rotate(weight.float(), matrix(block_of(weight.shape[1])))


class Rotated(nn.Module):
    """A layer whose weight was rotated, and the rotation of its inputs.

    Args:
        layer: reads [..., width].
        width: of its inputs.
    """

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("turn", matrix(block_of(width)))

    turn: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., out]."""
        out: Tensor = self.layer(rotate(x, self.turn))
        return out
