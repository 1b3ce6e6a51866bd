"""Root-mean-square normalization (Zhang & Sennrich, arXiv:1910.07467) in one pass, and its gradient in another.

For a row x of width D, with a weight w and a small epsilon:

    r = (mean(x^2) + epsilon)^(-1/2)        y = w x r
    dL/dx = r (w g - x r^2 mean(w g x))     dL/dw = sum over rows of g x r        with g = dL/dy

transformers writes it as six operations in fp32, and under autocast every linear behind it casts the result once more:
for a bf16 product of [N, D] three times 4 D bytes read and 2 D written. Here the result is written in the type it is
read in, once: per row 4 D bytes in and 2 D out forward, 10 D and 4 D backward, about 5 operations a number, so memory
sets the pace. Kept for backward is the input, which the residual stream holds anyway, and r.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compress_kernels.backend import backend_name
from compress_kernels.cpu_linear import DTYPES, c_function
from compress_kernels.levels import level


def rms_norm_reference(x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """The specification, in torch."""
    wide = x.float()
    inverse = (wide.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return (wide * inverse * weight.float()).to(dtype)


class _InTorch(torch.autograd.Function):
    """The same for other devices: of what autograd would keep, twice the input in fp32, only x and r are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        wide = x.float()
        inverse = (wide.square().mean(-1, keepdim=True) + epsilon).rsqrt()
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse * weight.float()).to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        gradient, normed = gradients[0].float(), x.float() * inverse
        weighted = gradient * weight.float()
        of_input = inverse * (weighted - normed * (weighted * normed).mean(-1, keepdim=True))
        of_weight = (gradient * normed).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return of_input.to(x.dtype), of_weight, None, None


class _RMSNorm(torch.autograd.Function):
    """The C kernels; x [rows, width] contiguous, weight fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        rows, width = x.shape
        out = torch.empty(x.shape, dtype=dtype)
        inverse = torch.empty(rows, dtype=torch.float32)
        c_function("ck_rms_norm", "pipfllpipii")(
            x.data_ptr(),
            DTYPES[x.dtype],
            weight.data_ptr(),
            epsilon,
            rows,
            width,
            out.data_ptr(),
            DTYPES[dtype],
            inverse.data_ptr(),
            torch.get_num_threads(),
            level(),
        )
        ctx.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        of_input = torch.empty_like(x)
        of_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        c_function("ck_rms_norm_backward", "pipippllppii")(
            gradient.data_ptr(),
            DTYPES[gradient.dtype],
            x.data_ptr(),
            DTYPES[x.dtype],
            weight.data_ptr(),
            inverse.data_ptr(),
            *x.shape,
            of_input.data_ptr(),
            None if of_weight is None else of_weight.data_ptr(),
            torch.get_num_threads(),
            level(),
        )
        return of_input, of_weight, None, None


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """y = weight * x / rms(x) over the last dimension, computed in fp32, rounded once.

    x: [..., width] in bf16, fp16 or fp32; weight: [width]; dtype: of the result.

    Raises ValueError if the widths differ.
    """
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight is {tuple(weight.shape)}: expected ({x.shape[-1]},), the width of x")
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    norm = _RMSNorm if backend_name(x.device) == "cpu" else _InTorch
    out: Tensor = norm.apply(rows, weight.float().contiguous(), epsilon, dtype)  # type: ignore[no-untyped-call]
    return out.view(x.shape)
