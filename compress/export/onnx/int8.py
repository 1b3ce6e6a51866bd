"""INT8 layers as ONNX has them: every product of a token's codes with a row's codes is exact.

Per token (a row of x), with q the INT8 codes of the weight and s the step of each output channel:

    a = absmax of the row          u = round(127 x / a) + 128                        in 1 .. 255
    y = MatMulInteger(u - 128, q) * (a / 127) * s + b

The arithmetic is that of `compress.runtime.int8`. The tokens' codes are shifted to be unsigned since onnxruntime has
fast products of unsigned with signed codes only (signed with signed: 30 times slower on AVX512-VNNI).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress.export.embedding import LEVELS
from compress.runtime.int8 import Int8Linear

SHIFT = 128
MATMUL_INTEGER = 10
"""The opset that has it as it is."""


class Int8Product(nn.Module):
    """An INT8 projection that the exporter writes as MatMulInteger.

    Args:
        layer: codes int8 [out, in], absmax fp32 [out].
        shared: its codes are an embedding's, which the graph holds as they lie.
    """

    def __init__(self, layer: Int8Linear, shared: bool) -> None:
        super().__init__()
        self.shared = shared
        self.register_buffer("codes", layer.codes if shared else layer.codes.t().contiguous())
        self.register_buffer("step", layer.absmax / LEVELS)
        self.register_buffer("bias", layer.bias)
        self.register_buffer("zero", torch.tensor(SHIFT, dtype=torch.uint8))

    codes: Tensor
    step: Tensor
    bias: Tensor | None
    zero: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        absmax = x.abs().amax(-1, keepdim=True).clamp_min(1e-30)
        tokens = ((x * (LEVELS / absmax)).round() + SHIFT).to(torch.uint8)
        codes = self.codes.t() if self.shared else self.codes
        shape = (*x.shape[:-1], codes.shape[1])
        product = torch.onnx.ops.symbolic(
            "MatMulInteger", (tokens, codes, self.zero), dtype=torch.int32, shape=shape, version=MATMUL_INTEGER
        )
        y = product.to(torch.float32) * (absmax / LEVELS) * self.step
        return y if self.bias is None else y + self.bias
