"""INT8 linear layer: weights with one scale a row, activations quantized per token as they come (W8A8).

Dettmers et al., LLM.int8() (arXiv:2208.07339), section 2.1. With q_x, q_w in [-127, 127], a_x = max |x| of a token and
a_w of a weight row:

    q_x = clamp(round(x * ((1 / a_x) * 127)))        y = (q_x @ q_w^T) * (a_x * a_w) * UNIT + bias,  UNIT = 1 / 127^2

The product is exact in int32, so y does not depend on the order of the sum; every other step is rounded in this order
and with bitsandbytes' UNIT, and the bits are those of bitsandbytes. A last bit that differs moves some activation of
the next layer to another code, and after thirty layers two models no longer agree.

Bytes per call, M tokens, [N, K] weights, in bf16: N K + 2 M K + 2 M N if fused. At M = 1 the weights set the pace
(one pass over N K bytes); from M ~ 100 the 2 M N K operations do.

The gradient to x is that of the product with the decoded weights, straight through the rounding (arXiv:1308.3432).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compress_kernels.backend import backend
from compress_kernels.codes import INT8_LEVELS, INT8_UNIT
from compress_kernels.dispatch import define, direct
from compress_kernels.int8_product import int8_product

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def _check(x: Tensor, codes: Tensor, absmax: Tensor) -> None:
    if x.dtype not in DTYPES:
        raise TypeError(f"dtype {x.dtype} is not supported: expected torch.bfloat16, torch.float16 or torch.float32")
    if codes.dtype != torch.int8 or codes.dim() != 2 or x.shape[-1] != codes.shape[1]:
        given = f"x {tuple(x.shape)} and codes {codes.dtype} {tuple(codes.shape)}"
        raise ValueError(f"{given} do not fit: expected [..., in] and int8 [out, in]")
    if absmax.dtype != torch.float32 or absmax.shape != codes.shape[:1]:
        raise ValueError(f"absmax is {absmax.dtype} {tuple(absmax.shape)}: expected torch.float32 ({len(codes)},)")


def _quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    rows = x.contiguous().view(-1, x.shape[-1])
    codes, absmax = backend(x.device).quantize_rows_int8(rows)
    return codes.view(x.shape), absmax.view(x.shape[:-1])


def _quantize_rows_fake(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=torch.int8), x.new_empty(x.shape[:-1], dtype=torch.float32)


def _linear(x: Tensor, codes: Tensor, absmax: Tensor, bias: Tensor | None) -> Tensor:
    return backend(x.device).linear_int8(x.contiguous(), codes.contiguous(), absmax.contiguous(), bias)


def _linear_fake(x: Tensor, codes: Tensor, _absmax: Tensor, _bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], codes.shape[0]))


def _keep(
    ctx: Any,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None],
    output: Tensor,  # noqa: ARG001 - torch names it
) -> None:
    _, codes, absmax, bias = inputs
    ctx.save_for_backward(codes, absmax)
    ctx.bias = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
    codes, absmax = ctx.saved_tensors
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = grad @ (codes.float() * (absmax / 127)[:, None]).to(grad.dtype)
    if ctx.bias is not None and ctx.needs_input_grad[3]:
        grad_bias = grad.flatten(0, -2).sum(0).to(ctx.bias)
    return grad_x, None, None, grad_bias


define("quantize_rows_int8(Tensor x) -> (Tensor, Tensor)", _quantize_rows, _quantize_rows_fake)
define("linear_int8(Tensor x, Tensor codes, Tensor absmax, Tensor? bias) -> Tensor", _linear, _linear_fake)
torch.library.register_autograd("compress_kernels::linear_int8", _backward, setup_context=_keep)

_ops = torch.ops.compress_kernels


def quantize_rows_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Per-token INT8. x: [..., K] in bf16, fp16 or fp32; returns int8 [..., K] and absmax fp32 [...]; no gradient.

    Raises TypeError for another dtype.
    """
    if x.dtype not in DTYPES:
        raise TypeError(f"dtype {x.dtype} is not supported: expected torch.bfloat16, torch.float16 or torch.float32")
    return _ops.quantize_rows_int8(x.detach())


def _static(x: Tensor, codes: Tensor, absmax: Tensor, bias: Tensor | None, input_absmax: Tensor) -> Tensor:
    """One range for all tokens: nothing has to be looked at before rounding, which torch does in one pass."""
    rows = (x.detach().float() * (INT8_LEVELS / input_absmax)).round_().clamp_(-INT8_LEVELS, INT8_LEVELS).to(torch.int8)
    product = int8_product(rows.view(-1, x.shape[-1]), codes).float()
    y = product * (absmax * (input_absmax * INT8_UNIT))
    return (y if bias is None else y + bias.float()).to(x.dtype).view(*x.shape[:-1], len(codes))


def linear_int8(
    x: Tensor, codes: Tensor, absmax: Tensor, bias: Tensor | None = None, input_absmax: Tensor | None = None
) -> Tensor:
    """The layer: [..., in] -> [..., out] in the type of x, differentiable in x and bias.

    Args:
        x: bf16, fp16 or fp32 [..., in].
        codes: int8 [out, in].
        absmax: fp32 [out].
        bias: floating point [out].
        input_absmax: fp32 [1], one range for all tokens (static; what lies beyond is clipped, and there is no
            gradient); by default each token has its own.

    Raises TypeError for another dtype, ValueError for shapes that do not fit.
    """
    _check(x, codes, absmax)
    if input_absmax is not None:
        return _static(x, codes, absmax, bias, input_absmax)
    if direct(x, bias):
        return _linear(x, codes, absmax, bias)
    y: Tensor = _ops.linear_int8(x, codes, absmax, bias)
    return y
