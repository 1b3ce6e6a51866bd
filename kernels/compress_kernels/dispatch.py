"""Operations of torch.library, and when a call may pass them by.

A registered operation is what autograd, torch.compile and torch.export understand. Its way through torch's dispatcher
costs as much as a small linear layer of one token: a plain eager call that needs no gradient goes straight to the
backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def define(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register `compress_kernels::<schema>` for CPU and CUDA tensors, with the shapes it returns."""
    name = "compress_kernels::" + schema.split("(", maxsplit=1)[0]
    torch.library.define(name, schema[schema.index("(") :])
    torch.library.impl(name, ("cpu", "cuda"), function)
    torch.library.register_fake(name, fake)


def direct(x: Tensor, bias: Tensor | None) -> bool:
    """Whether nothing but the numbers is wanted: a plain tensor, no gradient, no autocast, nothing traced."""
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return False
    return type(x) is Tensor and not torch.compiler.is_compiling() and not torch.is_autocast_enabled(x.device.type)
