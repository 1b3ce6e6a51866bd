"""bitsandbytes' 4-bit layer with our product; imported only where bitsandbytes already is."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from compress_kernels import Blockwise4bit, effective_absmax, linear_4bit
from compress_kernels.codes import BLOCKS, KINDS, NESTED_BLOCK
from torch import Tensor


def fits(layer: Any) -> bool:
    """Whether our kernels read the layer's weight: whole bytes a row, a block and a code they know."""
    state = layer.weight.quant_state
    if state is None or layer.weight.dtype != torch.uint8 or state.quant_type not in KINDS:
        return False
    nested = not state.nested or state.state2.blocksize == NESTED_BLOCK
    return nested and state.blocksize in BLOCKS and state.shape[1] % 2 == 0


class KernelLinear4bit(Linear4bit):
    """Weight, state and saving are bitsandbytes'; the product and its gradient are `compress_kernels.linear_4bit`.

    A layer becomes one by a change of its class, so there is no constructor: what it needs beyond bitsandbytes' is
    made from the weight's state at the first forward, and again whenever peft or a move gives it another state.
    """

    _known_state: Any = None
    _scales: Tensor
    _table: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out] in the type of `x`, computed in the layer's compute type, as bitsandbytes does."""
        weight: Any = self.weight
        state = weight.quant_state
        if state is not self._known_state or self._scales.device != x.device:
            self._read(state)
        kind = self.compute_dtype if self.compute_type_is_set else x.dtype
        codes = weight.data.view(state.shape[0], -1)
        given = x if kind is None or kind == x.dtype else x.to(kind)
        y = linear_4bit(given, codes, self._scales, self._table, state.blocksize, None, self.bias)
        return y if given is x else y.to(x.dtype)

    def _read(self, state: Any) -> None:
        nested, offset = (state.state2.absmax, state.offset) if state.nested else (None, None)
        parts = Blockwise4bit(self.weight.data, state.absmax, nested, offset, state.blocksize, state.quant_type)
        self._scales = effective_absmax(parts)
        self._table = state.code.float()
        self._known_state = state
