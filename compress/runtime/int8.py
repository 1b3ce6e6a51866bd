"""A linear layer on INT8 weights and dynamic per-token INT8 activations (W8A8), on `torch._int_mm`.

    y = (q_x @ q_w^T) * (s_x * s_w) / 127^2 + bias

The product is exact in int32, so the result does not depend on the order of the sum. What follows is computed in the
order and with the constant of bitsandbytes, so that both give the same bits: a last bit that differs moves some
activation of the next layer to another code, and after thirty layers the two models no longer agree.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress.grids.int8 import quantize_tokens

UNIT = 6.200124e-05
"""bitsandbytes' 1 / 127^2 (which is 6.200012e-05)."""
CUDA_ROWS = 17
"""`torch._int_mm` on CUDA takes no fewer rows."""


class Int8Linear(nn.Module):
    """Holds codes int8 [out, in] and the scale of every output channel."""

    def __init__(self, codes: Tensor, absmax: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("absmax", absmax.float())
        self.register_buffer("bias", bias)

    codes: Tensor
    absmax: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the type of `x`."""
        codes, absmax = quantize_tokens(x)
        rows = codes.reshape(-1, self.in_features)
        count = len(rows)
        if rows.is_cuda and count < CUDA_ROWS:
            rows = nn.functional.pad(rows, (0, 0, 0, CUDA_ROWS - count))
        product = torch._int_mm(rows, self.codes.t())[:count]
        y = product * (absmax.reshape(-1, 1) * self.absmax) * UNIT
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """As nn.Linear shows itself."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
