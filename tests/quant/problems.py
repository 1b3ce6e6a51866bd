"""Small layers with inputs as they are in language models: correlated, a few of them loud, some never seen."""

from __future__ import annotations

import torch
from torch import Tensor


def layer(rows: int = 32, columns: int = 64, tokens: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(weight [rows, columns], inputs [tokens, columns])."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    inputs = draw(tokens, columns) @ (draw(columns, columns) / columns**0.5 + torch.eye(columns))
    inputs[:, columns // 3] *= 10
    return draw(rows, columns) * torch.rand(rows, 1, generator=generator), inputs


def gram_of(inputs: Tensor) -> Tensor:
    """Second moment."""
    return inputs.T @ inputs / len(inputs)


def energy(error: Tensor, gram: Tensor) -> float:
    """tr(E H E^T) in fp64."""
    e, h = error.double(), gram.double()
    return float(((e @ h) * e).sum())
