"""How the model's answers move with the outputs of its linear layers: G of `compress.quant.coupled`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from compress.moments import SINKS
from compress.quant.coupled import Outputs
from compress.quant.drawn import backward_from_drawn
from compress.stage import Advance

ROWS = 1024
"""Of a block at most: the outputs of a wide layer are cut into blocks of one size."""


def output_moments(
    model: Any, paths: Iterable[str], windows: Tensor, seed: int, advance: Advance
) -> dict[str, Outputs]:
    """Sums of g g^T over the tokens of `windows`, without each window's first.

    Args:
        model: causal language model; its parameters are frozen.
        paths: of linear layers.
        windows: tokens [n, length].
        seed: of the tokens that are drawn.
        advance: called with 1 after each window.

    Returns:
        Path -> G; a path whose gradients are not finite is left out.
    """
    model.requires_grad_(False)
    sums: dict[str, list[Tensor]] = {}
    generator = torch.Generator().manual_seed(seed)
    with ExitStack() as hooks:
        for path in paths:
            hooks.callback(model.get_submodule(path).register_forward_hook(_adds(sums, path)).remove)
        for window in windows:
            backward_from_drawn(model, window, generator)
            advance(1)
    return {path: Outputs(blocks) for path, blocks in sums.items() if all(bool(b.isfinite().all()) for b in blocks)}


def _adds(sums: dict[str, list[Tensor]], path: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    def see(gradient: Tensor) -> None:
        parts = divided(gradient[:, SINKS:].flatten(0, 1).float())
        blocks = sums.setdefault(path, [part.new_zeros(part.shape[1], part.shape[1]) for part in parts])
        for block, part in zip(blocks, parts, strict=True):
            block.addmm_(part.t(), part)

    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        del args
        output.register_hook(see)  # type: ignore[no-untyped-call]

    return hook


def divided(outputs: Tensor) -> tuple[Tensor, ...]:
    """[..., rows] in as few parts of at most `ROWS` as there can be, of one size but for the remainder."""
    return outputs.tensor_split(-(-outputs.shape[-1] // ROWS), dim=-1)
