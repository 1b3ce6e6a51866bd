"""INT8 and 4-bit layers: every backend and instruction set as the specification says, gradients, refusals."""

from __future__ import annotations

import compress_kernels as ck
import pytest
import torch
import torch.nn.functional as F
from compress_kernels import cpu, cpu_linear, int8_product, reference
from compress_kernels.int8_product import in_fp32
from compress_kernels.linear4bit import INTEGER_TABLE
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# rows, in, out: one number, an odd width, less than a vector, ragged ends, more rows than one C call takes
SHAPES = ((1, 1, 1), (3, 31, 7), (1, 576, 33), (5, 70, 9), (8, 200, 13), (9, 64, 40))


def int8_case(rows: int, width: int, outs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + width)
    x = torch.randn(rows, width, generator=generator)
    x[0, 0] = 30.0
    codes = torch.randint(-127, 128, (outs, width), generator=generator, dtype=torch.int8)
    codes[0] = -128  # no grid writes it; a product of two codes must still be exact
    return x.to(dtype), codes, torch.rand(outs, generator=generator)


def bits(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_int8_has_the_bits_of_the_reference(shape: tuple[int, int, int], dtype: torch.dtype, level: str) -> None:
    x, codes, absmax = int8_case(*shape, dtype)
    for actual, expected in zip(cpu.quantize_rows_int8(x), reference.quantize_rows_int8(x), strict=True):
        bits(actual, expected)
    for bias in (None, torch.randn(shape[2]), torch.randn(shape[2]).to(dtype)):
        bits(cpu.linear_int8(x, codes, absmax, bias), reference.linear_int8(x, codes, absmax, bias))


@pytest.mark.parametrize("width", [1, 1023, 1024, 1025, 3000])
def test_int8_products_in_fp32_are_exact(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    a, b = (torch.randint(-128, 128, (rows, width), generator=generator, dtype=torch.int8) for rows in (5, 7))
    a[0], b[0], b[1] = -128, -128, 127  # the largest sums there are
    bits(in_fp32(a, b), (a.long() @ b.long().t()).int())


def test_int8_takes_the_product_that_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    x, codes, absmax = int8_case(20, 1100, 6, torch.float32)
    found = []
    for fast in (True, False):
        monkeypatch.setattr(int8_product, "FAST_ON_CPU", fast)
        with monkeypatch.context() as patch:
            if not fast:
                patch.setattr(torch, "_int_mm", None)
            found.append((cpu.linear_int8(x, codes, absmax, None), ck.linear_int8(x, codes, absmax, None, absmax[:1])))
    for one, other in zip(*found, strict=True):
        bits(one, other)


def test_int8_rounds_ties_as_torch_does(level: str) -> None:
    # with an absmax of 127 a number is its own code: halves are ties
    x = torch.cat([torch.tensor([127.0]), torch.arange(-126, 126) + 0.5])[None]
    codes, _ = cpu.quantize_rows_int8(x)
    bits(codes[0], reference.quantize_rows_int8(x)[0][0])
    # twice a number and its half: the scale's own rounding decides
    halves = torch.linspace(1.5, 4, 2000).bfloat16()
    x = torch.stack([halves, 2 * halves], dim=1)
    bits(cpu.quantize_rows_int8(x)[0], reference.quantize_rows_int8(x)[0])


def test_int8_rows_of_zeros_nan_and_infinity(level: str) -> None:
    x, codes, absmax = int8_case(5, 70, 9, torch.float32)
    x[0], x[1, 3], x[2, 4], x[3] = 0.0, float("nan"), float("inf"), 1e-42
    for actual, expected in zip(cpu.quantize_rows_int8(x), reference.quantize_rows_int8(x), strict=True):
        bits(actual, expected)
    y = cpu.linear_int8(x, codes, absmax, None)
    bits(y, reference.linear_int8(x, codes, absmax, None))
    assert bool((y[0] == 0).all()) and bool(y[1].isnan().all()) and bool(y[4].isfinite().all())


def four_bit_case(
    width: int, outs: int, block: int, scale_dtype: torch.dtype = torch.float32, offset: bool = False
) -> tuple[Tensor, Tensor, Tensor, int, Tensor | None]:
    generator = torch.Generator().manual_seed(width + block)
    blocks = -(-width * outs // block)
    codes = torch.randint(0, 256, (outs, width // 2), generator=generator, dtype=torch.uint8)
    scales = (torch.randn(blocks, generator=generator) * 0.1).to(scale_dtype)
    offsets = torch.randn(blocks, generator=generator) if offset else None
    return codes, scales, INTEGER_TABLE if offset else ck.NF4_CODE, block, offsets


def by_hand(codes: Tensor, scales: Tensor, table: Tensor, block: int, offsets: Tensor | None) -> Tensor:
    """The matrix in fp64, weight by weight."""
    flat = []
    for i, byte in enumerate(codes.flatten().tolist()):
        for place, code in ((2 * i, byte >> 4), (2 * i + 1, byte & 15)):
            offset = 0.0 if offsets is None else float(offsets[place // block])
            flat.append(float(table[code]) * float(scales[place // block]) + offset)
    return torch.tensor(flat, dtype=torch.float64).view(codes.shape[0], -1)


@pytest.mark.parametrize("offset", (False, True))
@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_decoded_rows_are_table_times_scale(scale_dtype: torch.dtype, offset: bool, level: str) -> None:
    # blocks within rows, over row ends, a ragged last block
    for width, outs, block in ((64, 5, 32), (96, 5, 64), (30, 7, 32)):
        parts = four_bit_case(width, outs, block, scale_dtype, offset)
        torch.testing.assert_close(ck.decode_rows_4bit(*parts, dtype=torch.float32).double(), by_hand(*parts))
        for dtype in DTYPES:
            expected = reference.decode_rows_4bit(*parts, None, dtype)
            bits(ck.decode_rows_4bit(*parts, dtype=dtype), expected)
            ids = torch.tensor([[outs - 1, 0], [2, 2]], dtype=torch.int32)
            bits(ck.embedding_4bit(ids, *parts, dtype=dtype), expected[ids.long()])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", (False, True))
def test_4bit_layer_equals_decoding_and_multiplying(offset: bool, dtype: torch.dtype, level: str) -> None:
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 6e-4}[dtype]
    # a block that ends inside a lane group, blocks over row ends, an odd number of bytes, more rows than one call takes
    for rows, width, outs, block in (
        (1, 576, 9, 128),
        (4, 200, 6, 32),
        (3, 64, 7, 4096),
        (2, 30, 7, 32),
        (9, 96, 8, 64),
    ):
        for scale_dtype in DTYPES:
            parts = four_bit_case(width, outs, block, scale_dtype, offset)
            x = torch.randn(2, rows, width)[:1].to(dtype)
            weight = reference.decode_rows_4bit(*parts, None, torch.float32).double()
            for bias in (None, torch.randn(outs)):
                expected = F.linear(x.double(), weight, None if bias is None else bias.double())
                error = (ck.linear_4bit(x, *parts, bias).double() - expected).norm() / expected.norm()
                assert error < tolerance, (rows, width, outs, block, scale_dtype, float(error))


def test_nf4_through_the_generic_layer_is_the_blockwise_tensor() -> None:
    w = torch.randn(48, 128) * 0.02
    q = ck.quantize_4bit(w)
    parts = (q.codes.view(48, 64), ck.effective_absmax(q), ck.NF4_CODE, 64)
    bits(ck.decode_rows_4bit(*parts, dtype=torch.bfloat16), ck.dequantize_4bit(q, w.shape, torch.bfloat16))
    x = torch.randn(3, 128)
    torch.testing.assert_close(ck.linear_4bit(x, *parts), x @ ck.dequantize_4bit(q, w.shape, torch.float32).t())


@pytest.mark.parametrize("rows", (2, 12))
def test_gradients_are_those_of_the_decoded_weights(rows: int) -> None:
    parts = four_bit_case(64, 24, 32, torch.float16, offset=True)
    codes = torch.randint(-127, 128, (24, 64), dtype=torch.int8)
    absmax = torch.rand(24)
    dense = {
        "4bit": (lambda x, b: ck.linear_4bit(x, *parts, b), reference.decode_rows_4bit(*parts, None, torch.float32)),
        "int8": (lambda x, b: ck.linear_int8(x, codes, absmax, b), codes.float() * (absmax / 127)[:, None]),
    }
    for name, (layer, weight) in dense.items():
        x, bias = torch.randn(2, rows, 64, requires_grad=True), torch.randn(24, requires_grad=True)
        with torch.no_grad():
            layer(x, bias)  # a forward without gradients must not spoil the next one
        factor = torch.randn(2, rows, 24)
        (layer(x, bias) * factor).sum().backward()
        torch.testing.assert_close(x.grad, factor @ weight, rtol=1e-5, atol=1e-5, msg=name)
        torch.testing.assert_close(bias.grad, factor.sum((0, 1)), msg=name)


def test_operations_are_registered_as_they_should_be() -> None:
    parts = four_bit_case(64, 24, 32, offset=True)
    x = torch.randn(2, 3, 64, requires_grad=True)
    codes, absmax, bias = torch.randint(-127, 128, (24, 64), dtype=torch.int8), torch.rand(24), torch.randn(24)
    ops, tests = torch.ops.compress_kernels, ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(ops.linear_4bit, (x, *parts, bias), test_utils=tests)
    torch.library.opcheck(ops.decode_rows_4bit, (*parts, torch.tensor([1, 0]), torch.float16), test_utils=tests)
    torch.library.opcheck(ops.linear_int8, (x, codes, absmax, bias), test_utils=tests)
    torch.library.opcheck(ops.quantize_rows_int8, (x.detach(),), test_utils=tests)


def test_many_rows_and_few_rows_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    x, codes, absmax = int8_case(16, 200, 13, torch.bfloat16)
    many = cpu.linear_int8(x, codes, absmax, None)
    monkeypatch.setattr(cpu_linear, "INT8_ROWS", 16)
    bits(cpu.linear_int8(x, codes, absmax, None), many)


def test_refusals_name_what_was_given() -> None:
    codes, scales, table, block, _ = four_bit_case(64, 5, 32)
    x = torch.randn(1, 64)
    with pytest.raises(ValueError, match=r"x is \(1, 62\) and codes are \(5, 32\)"):
        ck.linear_4bit(x[:, :62], codes, scales, table, block)
    with pytest.raises(ValueError, match=r"scales are torch.float32 \(9,\): expected .* \(10,\), one for every 32"):
        ck.linear_4bit(x, codes, scales[:9], table, block)
    with pytest.raises(ValueError, match="block 48 is not supported"):
        ck.linear_4bit(x, codes, scales, table, 48)
    with pytest.raises(TypeError, match=r"torch\.float64 is not supported"):
        ck.linear_4bit(x.double(), codes, scales, table, block)
    with pytest.raises(IndexError, match="from 0 to 4"):
        ck.embedding_4bit(torch.tensor([5]), codes, scales, table, block, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"expected \[..., in\] and int8 \[out, in\]"):
        ck.linear_int8(x, torch.zeros(3, 32, dtype=torch.int8), torch.ones(3))
