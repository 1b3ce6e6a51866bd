"""Linear layers whose inputs are rounded to INT8, while a model is calibrated or trained.

Per token the step follows every token's largest magnitude as it comes. Static, a layer has one range, chosen once on
calibration text so that the relative error per token

    mean over tokens of ||x - Q(x)||^2 / ||x||^2

is least: a few tokens have activations a thousand times those of others (arXiv 2402.17762), and a range that holds them
would round all others to zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from compress.grids.int8 import fake_quantize
from compress.quant.stage import Activations

RANGES = 24
"""Ranges tried, each the next smaller by the square root of two."""


@dataclass
class RoundedInputs:
    """What layers do with their inputs; `ranges` holds the largest magnitude of each, where it is static."""

    kind: Activations = Activations.none
    ranges: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def on(self, model: Any, paths: Sequence[str]) -> Iterator[None]:
        """Inside, the layers at `paths` round what they read; static ones from when their range is known."""

        def rounding(path: str) -> Any:
            def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
                return (self.round(path, args[0]), *args[1:])

            return hook

        handles = [model.get_submodule(path).register_forward_pre_hook(rounding(path)) for path in paths]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def round(self, path: str, x: Tensor) -> Tensor:
        """The input of one layer as it is multiplied."""
        if self.kind is Activations.int8_token:
            return fake_quantize(x)
        known = self.ranges.get(path) if self.kind is Activations.int8_static else None
        return x if known is None else fake_quantize(x, known)

    def settle(self, group: Sequence[str], inputs: list[Tensor]) -> list[Tensor]:
        """Choose the range of layers that share their inputs, and give these as they will be from now on."""
        if self.kind is not Activations.int8_static:
            return inputs
        found = best_range(inputs)
        self.ranges.update(dict.fromkeys(group, found))
        return [fake_quantize(x, found) for x in inputs]


def best_range(inputs: Sequence[Tensor]) -> float:
    """The range of least relative error per token, over batches [..., features]; 1 where all is zero."""
    largest = max(float(x.abs().amax()) for x in inputs)
    if not largest > 0:
        return 1.0
    best, least = largest, float("inf")
    for step in range(RANGES):
        tried, error = largest / 2 ** (step / 2), 0.0
        for x in inputs:
            exact = x.float()
            lost = (fake_quantize(exact, tried) - exact).square().sum(-1)
            error += float((lost / exact.square().sum(-1).clamp_min(1e-30)).sum())
        if error < least:
            best, least = tried, error
    return best
