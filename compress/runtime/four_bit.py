"""bitsandbytes' 4-bit layers, kept exact."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn


def keep_four_bit_exact(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights for AVX512-BF16.

    Its first forward without gradients repacks them for good: from then on the gradient to the input is silently wrong,
    and a checkpoint saved from the model too.
    """
    module: Any
    for module in model.modules():
        if is_four_bit(module):
            module.support_avx512bf16_for_cpu = False


def is_four_bit(module: Any) -> bool:
    """Whether `module` is a bitsandbytes 4-bit layer; does not import bitsandbytes if nobody has yet."""
    if "bitsandbytes" not in sys.modules:
        return False
    from bitsandbytes.nn import Linear4bit

    return isinstance(module, Linear4bit)


def dequantized(layer: Any) -> Tensor:
    """What a bitsandbytes 4-bit layer multiplies with, fp32 [out, in] on the CPU."""
    from bitsandbytes.functional import dequantize_4bit

    weight: Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight.float().cpu()
