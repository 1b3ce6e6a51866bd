"""The 4-bit grid against bitsandbytes, an independent implementation."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from compress.grids import FourBit


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("double_quant", [True, False])
def test_decodes_to_the_bits_of_bitsandbytes(kind: Literal["nf4", "fp4"], block: int, double_quant: bool) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    w = torch.randn(96, 128, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    grid = FourBit(kind, block, double_quant)
    codes, state = quantize_4bit(w, quant_type=kind, blocksize=block, compress_statistics=double_quant)
    assert torch.equal(grid.decode(grid.encode(w)), dequantize_4bit(codes, state))


def test_bits_are_what_is_stored() -> None:
    w = torch.randn(1024, 4096)
    for grid in (FourBit(), FourBit(double_quant=False), FourBit(block=128)):
        stored = 8 * grid.encode(w).bytes() / w.numel()
        assert abs(stored - grid.bits()) < 1e-4
    assert abs(FourBit().bits() - 4.127) < 1e-3
