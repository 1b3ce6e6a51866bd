"""The INT8 layer against plain floating-point arithmetic on the same codes."""

from __future__ import annotations

import pytest
import torch

from compress.grids import Int8
from compress.grids.int8 import fake_quantize
from compress.runtime.int8 import Int8Linear


@pytest.mark.parametrize("rows", [1, 5, 33])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_product_of_the_rounded(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    w, b, x = torch.randn(48, 64), torch.randn(48) if bias else None, torch.randn(2, rows, 64)
    encoded = Int8().encode(w)
    layer = Int8Linear(encoded.parts["codes"], encoded.parts["absmax"], b)
    expected = torch.nn.functional.linear(
        fake_quantize(x).double(), fake_quantize(w).double(), None if b is None else b.double()
    )
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-4)


def test_keeps_the_type_of_its_input() -> None:
    encoded = Int8().encode(torch.randn(32, 64))
    layer = Int8Linear(encoded.parts["codes"], encoded.parts["absmax"], None)
    assert layer(torch.randn(3, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
