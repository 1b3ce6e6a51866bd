"""What calibration text says about a model: one walk collects every statistic that a criterion asks for.

The first tokens of a window carry massive activations (attention sinks, arXiv 2402.17762): a handful of positions would
rule every second moment, so they are left out of all statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress.data.windows import joined_windows
from compress.runtime.loading import load_model
from compress.train.module import last_hidden

if TYPE_CHECKING:
    from compress.checkpoint import Checkpoint
    from compress.stage import Advance, Context

WINDOW = 512
SINK_TOKENS = 4
"""Positions at the start of each window that no statistic counts."""

Observer = Callable[[Tensor, Tensor], None]
"""Gets a module's input and output [batch, sequence, features], sinks left out."""


def calibration_windows(context: Context, tokens: int) -> Tensor:
    """Windows [n, WINDOW] of the calibration text."""
    limit = getattr(context.original.config, "max_position_embeddings", None) or WINDOW
    return joined_windows(
        context.corpus.calibration,
        context.original.tokenizer(),
        length=min(WINDOW, limit),
        tokens=max(tokens, min(WINDOW, limit)),
        setting="calibration window",
    )


@torch.no_grad()
def walk(model: Any, windows: Tensor, observers: dict[str, Observer], advance: Advance) -> None:
    """Run `windows` [n, length] through `model`, showing every observed module's input and output to its observer.

    Args:
        model: causal language model.
        windows: tokens.
        observers: dotted module path -> observer.
        advance: called with 1 after each window.
    """
    with ExitStack() as hooks:
        for path, observer in observers.items():
            handle = model.get_submodule(path).register_forward_hook(_showing(observer))
            hooks.callback(handle.remove)
        for window in windows:
            last_hidden(model, window[None].to(model.device))
            advance(1)


def _showing(observer: Observer) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        observer(inputs[0][:, SINK_TOKENS:], first[:, SINK_TOKENS:])

    return hook


def input_rms(checkpoint: Checkpoint, paths: Sequence[str], context: Context, tokens: int) -> dict[str, Tensor]:
    """Root mean square [in] of every input feature of the linear layers at `paths`."""
    windows = calibration_windows(context, tokens)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def observe(path: str) -> Observer:
        def observer(x: Tensor, _: Tensor) -> None:
            rows = x.float().flatten(0, 1)
            sums[path] = sums.get(path, torch.zeros(rows.shape[1], device=rows.device)) + rows.square().sum(0)
            counts[path] = counts.get(path, 0) + len(rows)

        return observer

    with context.progress.bar("measuring inputs", len(windows)) as advance:
        model = load_model(checkpoint.folder, device=context.fabric.device)
        walk(model, windows, {path: observe(path) for path in paths}, advance)
    return {path: (sums[path] / counts[path]).sqrt() for path in paths}
