"""An embedding of INT8 rows, as graphs hold it."""

from __future__ import annotations

from torch import Tensor, nn

from compress.export.rotation import block_of, matrix, rotate

LEVELS = 127


class Int8Embedding(nn.Module):
    """Rows are decoded when looked up.

    Args:
        codes: int8 [tokens, width].
        absmax: fp32 [tokens], of every row.
        rotated: the rows were (for a head with the same codes), and are turned back.
    """

    def __init__(self, codes: Tensor, absmax: Tensor, rotated: bool = False) -> None:
        super().__init__()
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("step", absmax.float() / LEVELS)
        self.register_buffer("turn", matrix(block_of(codes.shape[1])) if rotated else None)

    codes: Tensor
    step: Tensor
    turn: Tensor | None

    @property
    def weight(self) -> Tensor:
        """Decoded [tokens, width]: models ask their embedding for its type and device."""
        return self._turned(self.codes.float() * self.step[:, None])

    def forward(self, ids: Tensor) -> Tensor:
        """[...] -> [..., width]."""
        flat = ids.flatten()
        rows = self.codes.index_select(0, flat).float() * self.step.index_select(0, flat)[:, None]
        return self._turned(rows.view(*ids.shape, -1))

    def _turned(self, rows: Tensor) -> Tensor:
        return rows if self.turn is None else rotate(rows, self.turn)
