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
    torch.testing.assert_close(
        layer(x).double(), expected, rtol=5e-5, atol=1e-4
    )  # bitsandbytes' constant is off by 2e-5


def test_keeps_the_type_of_its_input() -> None:
    encoded = Int8().encode(torch.randn(32, 64))
    layer = Int8Linear(encoded.parts["codes"], encoded.parts["absmax"], None)
    assert layer(torch.randn(3, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_gives_the_bits_of_bitsandbytes(dtype: torch.dtype, bias: bool) -> None:
    from bitsandbytes import matmul
    from bitsandbytes.autograd._functions import MatmulLtState

    torch.manual_seed(0)
    w, x = torch.randn(96, 128), torch.randn(7, 128).to(dtype)
    x[3, 5] = 300.0
    b = torch.randn(96).to(dtype) if bias else None
    encoded = Int8().encode(w)
    codes, absmax = encoded.parts["codes"], encoded.parts["absmax"]
    state = MatmulLtState()
    state.CB, state.SCB, state.has_fp16_weights, state.is_training = codes, absmax, False, False
    with torch.no_grad():
        assert torch.equal(Int8Linear(codes, absmax, b)(x), matmul(x, codes, bias=b, state=state))
