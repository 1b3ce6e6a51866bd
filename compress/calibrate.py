"""What calibration text says about a model: one walk collects every statistic that a criterion asks for.

The first tokens of a window carry massive activations (attention sinks, arXiv 2402.17762): a handful of positions would
rule every second moment, so they are left out of all statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress.data.rows import check_rows
from compress.data.windows import CALIBRATION_WINDOW, joined_windows, readable, spread_windows
from compress.train.module import last_hidden

if TYPE_CHECKING:
    from compress.stage import Advance, Context

SETTING = "the calibration window"
SINK_TOKENS = 4
"""Positions at the start of each window that no statistic counts."""

GRAM_BYTES = 1 << 30
"""Gram matrices held at a time; a model with more is walked through several times."""
Grams = dict[str, Tensor]

Observer = Callable[[Tensor, Tensor], None]
"""Gets a module's input and output [batch, sequence, features], sinks left out."""


def calibration_windows(context: Context, tokens: int, length: int = CALIBRATION_WINDOW) -> Tensor:
    """Windows [n, length]: calibration text from many places, and for up to half of them the original's own.

    Documents too short to give a window each are joined, and so is own text; the model's positions limit the length.
    """
    length = readable(length, context.original.config)
    own = context.own_text().flatten()
    own = own[: min(len(own), tokens // 2) // length * length].view(-1, length)
    documents, tokenizer = context.corpus.calibration, context.original.tokenizer()
    wanted = max(tokens - own.numel(), length)
    text = spread_windows(documents, tokenizer, length=length, tokens=wanted, seed=context.seed)
    if len(text) < wanted // length:  # documents of a few words each
        text = joined_windows(documents, tokenizer, length=length, tokens=wanted, setting=SETTING, text="calibration")
    check_rows(text, context.original)
    return torch.cat([text, own])


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


def input_grams(
    model: Any, widths: dict[str, int], context: Context, tokens: int, length: int = CALIBRATION_WINDOW
) -> Iterator[Grams]:
    """Second moments x^T x / n [in, in] of the inputs of linear layers, as many at a time as fit in `GRAM_BYTES`.

    Args:
        model: is run.
        widths: path of a linear layer -> number of its inputs.
        context: of the stage.
        tokens: calibration tokens.
        length: of a window, if the model has so many positions.

    Yields:
        Path -> matrix, emptied when the next are asked for.
    """
    windows = calibration_windows(context, tokens, readable(length, model.config))
    parts = in_parts(widths)
    with context.progress.bar("measuring inputs", len(windows) * len(parts)) as advance:
        for part in parts:
            sums = {path: torch.zeros(widths[path], widths[path], device=context.fabric.device) for path in part}
            walk(model, windows, {path: _adds_gram(total) for path, total in sums.items()}, advance)
            count = len(windows) * (windows.shape[1] - SINK_TOKENS)
            for path in part:
                sums[path].div_(count)
            yield sums
            sums.clear()  # before the next are made


def in_parts(widths: dict[str, int]) -> list[list[str]]:
    """Paths in order, cut so that the fp32 matrices of each part take at most `GRAM_BYTES` (or it is a single one)."""
    parts: list[list[str]] = [[]]
    taken = 0
    for path, width in widths.items():
        size = 4 * width * width
        if parts[-1] and taken + size > GRAM_BYTES:
            parts.append([])
            taken = 0
        parts[-1].append(path)
        taken += size
    return parts


def _adds_gram(total: Tensor) -> Observer:
    def observer(x: Tensor, _: Tensor) -> None:
        rows = x.float().flatten(0, 1)
        total.addmm_(rows.t(), rows)

    return observer
