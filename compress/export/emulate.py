"""What runtimes do to activations before a product, in plain torch: a model hooked with these answers as they do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Rounding = Callable[[Tensor], Tensor]

BLOCK = 32


def blocks_of_32(x: Tensor) -> Tensor:
    """ggml's Q8_0 for activations: d = absmax / 127 of 32 neighbours, kept as fp16; codes are chosen with the exact d."""
    rows = x.float().reshape(-1, BLOCK)
    step = rows.abs().amax(-1, keepdim=True) / 127
    codes = torch.where(step > 0, rows / step, torch.zeros_like(rows)).round()
    return (codes * step.half().float()).reshape(x.shape).to(x.dtype)


def half(x: Tensor) -> Tensor:
    """fp16, as ggml multiplies with f16 weights."""
    return x.half().to(x.dtype)


@contextmanager
def rounded_inputs(model: Any, rules: Mapping[str, Rounding]) -> Iterator[None]:
    """While inside, the input of each module named in `rules` is rounded first."""
    handles = [
        model.get_submodule(path).register_forward_pre_hook(lambda _, args, rule=rule: (rule(args[0]), *args[1:]))
        for path, rule in rules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def answer(model: Any, ids: Tensor) -> Tensor:
    """Logits fp32 [length, vocab] of `ids` [1, length]."""
    logits: Tensor = model(ids.to(model.device)).logits[0].float().cpu()
    return logits
