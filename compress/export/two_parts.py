"""Inputs rounded to INT8 in two parts, where the codes of a weight are given and cannot be rotated.

    y = L(r(x)) + L(x - r(x))          L rounds each token to INT8 as r does; rounded twice, a token stays as it is

One loud channel leaves its token's others a few codes each, and a last bit that moves one moves what follows. The
second part's step is at most a 254th of the first's: INT16 in all but name. Both are rows of one product, so that the
weights are read once, which is what a single token waits for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class TwoParts(nn.Module):
    """A linear layer whose inputs are rounded in two parts.

    Args:
        layer: without a bias; rounds its inputs.
        rounded: rounds a token [..., in] as `layer` does.
        bias: [out].
    """

    def __init__(self, layer: nn.Module, rounded: Callable[[Tensor], Tensor], bias: Tensor | None) -> None:
        super().__init__()
        self.layer = layer
        self.rounded = rounded
        self.register_buffer("bias", bias)

    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """[..., tokens, in] -> [..., tokens, out]."""
        tokens = x.shape[-2]
        first = self.rounded(x)
        parts: Tensor = self.layer(torch.cat((first, x - first), -2))
        y = parts[..., :tokens, :] + parts[..., tokens:, :]
        return y if self.bias is None else y + self.bias
