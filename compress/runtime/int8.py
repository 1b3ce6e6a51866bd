"""A linear layer on INT8 weights and INT8 activations (W8A8): per token with the bits of bitsandbytes, or on one range.

The arithmetic is `compress_kernels.linear_int8`: one C call for a few tokens, an exact product between two for many,
one kernel on CUDA.
"""

from __future__ import annotations

import torch
from compress_kernels import linear_int8
from torch import Tensor, nn


class Int8Linear(nn.Module):
    """Holds codes int8 [out, in] and the scale of every output channel."""

    def __init__(
        self,
        codes: Tensor,
        absmax: Tensor,
        bias: Tensor | None,
        input_absmax: Tensor | None = None,
        through_half: bool = False,
    ) -> None:
        super().__init__()
        self.through_half = through_half
        self.out_features, self.in_features = codes.shape
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("absmax", absmax.float())
        self.register_buffer("bias", bias)
        self.register_buffer("input_absmax", None if input_absmax is None else input_absmax.float())

    codes: Tensor
    absmax: Tensor
    bias: Tensor | None
    input_absmax: Tensor | None
    """[1], the static range of the inputs; None where every token has its own."""
    through_half: bool
    """Inputs in fp32 are rounded to fp16 first, as bitsandbytes rounds them: else single codes differ from its own."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the type of `x`."""
        if self.through_half and x.dtype is torch.float32:
            x = x.half().float()
        return linear_int8(x, self.codes, self.absmax, self.bias, self.input_absmax)

    def extra_repr(self) -> str:
        """As nn.Linear shows itself."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
