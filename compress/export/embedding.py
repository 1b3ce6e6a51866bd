"""An embedding of INT8 rows, as graphs hold it."""

from __future__ import annotations

from torch import Tensor, nn

LEVELS = 127


class Int8Embedding(nn.Module):
    """Codes int8 [tokens, width] and the absmax fp32 of every row; rows are decoded when looked up."""

    def __init__(self, codes: Tensor, absmax: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("step", absmax.float() / LEVELS)

    codes: Tensor
    step: Tensor

    @property
    def weight(self) -> Tensor:
        """Decoded [tokens, width]: models ask their embedding for its type and device."""
        return self.codes.float() * self.step[:, None]

    def forward(self, ids: Tensor) -> Tensor:
        """[...] -> [..., width]."""
        flat = ids.flatten()
        rows = self.codes.index_select(0, flat).float() * self.step.index_select(0, flat)[:, None]
        return rows.view(*ids.shape, -1)
