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
    """ggml's Q8_0 for activations: d = absmax / 127 of 32 neighbours, stored in fp16; the codes are chosen before."""
    rows = x.float().reshape(-1, BLOCK)
    step = rows.abs().amax(-1, keepdim=True) / 127
    codes = torch.where(step > 0, rows / step, torch.zeros_like(rows)).round()
    return (codes * step.half().float()).reshape(x.shape).to(x.dtype)


def tokens_to_int8(x: Tensor) -> Tensor:
    """compressed-tensors' dynamic INT8: one step per token, absmax / 127.5, in the type of `x`."""
    step = x.abs().amax(-1, keepdim=True) / 127.5
    step = torch.where(step == 0, torch.full_like(step, torch.finfo(x.dtype).eps), step)
    return (x / step).clamp(-128, 127).round() * step


def tokens_to_symmetric_int8(x: Tensor) -> Tensor:
    """`compress.runtime.int8`'s dynamic INT8: one step per token, absmax / 127."""
    step = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return (x / step).round() * step


def range_to_int8(x: Tensor, step: Tensor) -> Tensor:
    """compressed-tensors' static INT8: one given step for all tokens, in the type of `x`."""
    return (x / step).clamp(-128, 127).round() * step


def tokens_to_asymmetric_int8(x: Tensor) -> Tensor:
    """XNNPACK's dynamic INT8: per token one step and one zero point over [min, max], zero among them."""
    low, high = x.amin(-1, keepdim=True).clamp_max(0), x.amax(-1, keepdim=True).clamp_min(0)
    step = (high - low) / 255
    step = torch.where(step == 0, torch.ones_like(step), step)
    zero = (-128 - low / step).round()
    return ((x / step).round().add(zero).clamp(-128, 127) - zero) * step


def half(x: Tensor) -> Tensor:
    """fp16, as ggml multiplies with f16 weights."""
    return x.half().to(x.dtype)


def last_bits_moved(x: Tensor) -> Tensor:
    """What comes out of sums in another order."""
    return x * (1 + 2 * torch.finfo(x.dtype).eps)


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
