"""NF4/FP4: the bits of bitsandbytes, every backend the same, and the error a 4-bit grid must keep."""

from __future__ import annotations

import random

import bitsandbytes.functional as bnb
import compress_kernels as ck
import pytest
import torch
from bitsandbytes.functional import QuantState
from compress_kernels import codes, cpu, reference
from compress_kernels.levels import LEVELS, force_level
from torch import Tensor

KINDS = ("nf4", "fp4")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# one weight, an odd pair, a block less one, a block, a block and one, many with a ragged end
COUNTS = (1, 2, 31, 63, 64, 65, 127, 4097, 100_003)


def levels() -> list[str]:
    usable = []
    for name in LEVELS:
        try:
            force_level(name)
        except ValueError:
            continue
        usable.append(name)
    force_level(None)
    return usable


@pytest.fixture(params=levels())
def level(request: pytest.FixtureRequest):
    force_level(request.param)
    yield request.param
    force_level(None)


def weights(count: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).mul(0.02).to(dtype)


def assert_bits(actual: Tensor, expected: Tensor) -> None:
    """Equal to the bit, but for which NaN a NaN is."""
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    if actual.is_floating_point():
        number = ~actual.isnan()
        assert torch.equal(actual[number].signbit(), expected[number].signbit())


def assert_as_bitsandbytes(w: Tensor, kind: str, block: int) -> None:
    packed, state = bnb.quantize_4bit(w, blocksize=block, quant_type=kind, compress_statistics=True)
    ours = ck.quantize_4bit(w, kind=kind, block=block)
    assert_bits(ours.codes, packed.view(-1))
    assert_bits(ours.absmax, state.absmax)
    assert ours.nested_absmax is not None and ours.offset is not None
    assert_bits(ours.nested_absmax, state.state2.absmax)
    assert_bits(ours.offset, state.offset)
    _, plain = bnb.quantize_4bit(w, blocksize=block, quant_type=kind, compress_statistics=False)
    single = ck.quantize_4bit(w, kind=kind, block=block, double_quant=False)
    assert_bits(single.absmax, plain.absmax)
    assert_bits(single.codes, ours.codes)


def test_tables_have_bitsandbytes_bits() -> None:
    assert torch.equal(ck.NF4_CODE.view(torch.int32), bnb.get_4bit_type("nf4", "cpu").view(torch.int32))
    assert torch.equal(ck.FP4_CODE.view(torch.int32), bnb.get_4bit_type("fp4", "cpu").view(torch.int32))
    assert torch.equal(ck.DYNAMIC_CODE.view(torch.int32), bnb.create_dynamic_map().view(torch.int32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", codes.BLOCKS)
@pytest.mark.parametrize("kind", KINDS)
def test_quantize_has_bitsandbytes_bits(level: str, kind: str, block: int, dtype: torch.dtype) -> None:
    for count in COUNTS:
        assert_as_bitsandbytes(weights(count, dtype), kind, block)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", (32, 64, 128))
def test_special_values_have_bitsandbytes_bits(level: str, kind: str, block: int) -> None:
    w = weights(16 * block + 7, torch.float32)
    w[:block] = 0.0
    w[block + 3] = float("nan")
    w[2 * block + 5] = float("inf")
    w[3 * block] = float("-inf")
    w[4 * block : 5 * block] *= 1e-37  # absmax below the smallest one that is inverted
    w[5 * block : 6 * block] = 1e-44
    w[6 * block : 7 * block] = 3.4e38
    w[7 * block : 8 * block] = -0.0
    w[-7:] = 1e-41  # a ragged block of subnormals, which divides and raises its absmax
    assert_as_bitsandbytes(w, kind, block)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_midpoints_and_their_neighbours(level: str, kind: str, dtype: torch.dtype) -> None:
    bounds = codes.code_table(kind, torch.device("cpu")).bounds
    near = [bounds, torch.nextafter(bounds, torch.tensor(2.0)), torch.nextafter(bounds, torch.tensor(-2.0))]
    for step in near:
        block = torch.cat([torch.ones(1), step, -step, torch.zeros(1)])
        for scale in (1.0, 0.3, 1.7e-3, 7e4):
            assert_as_bitsandbytes((torch.cat([block, block]) * scale).to(dtype), kind, 64)


def test_every_16_bit_weight() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        mixed = every[torch.randperm(every.numel(), generator=torch.Generator().manual_seed(0))]
        for kind in KINDS:
            assert_as_bitsandbytes(every, kind, 64)
            assert_as_bitsandbytes(mixed[mixed.isfinite()], kind, 64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(48, 128), (7, 5), (3, 1), (129,), (2, 3, 64)])
def test_interchange_with_bitsandbytes(level: str, kind: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    w = weights(int(torch.tensor(shape).prod()), dtype).view(shape)
    ours = ck.quantize_4bit(w, kind=kind)
    assert ours.nested_absmax is not None and ours.offset is not None
    parts = {
        "absmax": ours.absmax,
        "quant_map": ck.NF4_CODE if kind == "nf4" else ck.FP4_CODE,
        "nested_absmax": ours.nested_absmax,
        "nested_quant_map": ck.DYNAMIC_CODE,
        "quant_type": kind,
        "blocksize": ours.block,
        "nested_blocksize": codes.NESTED_BLOCK,
        "nested_offset": ours.offset.item(),
        "dtype": str(dtype).removeprefix("torch."),
        "nested_dtype": "float32",
        "shape": shape,
    }
    read = QuantState.from_dict(parts, torch.device("cpu"))
    theirs = bnb.dequantize_4bit(ours.codes[:, None], read)
    # without AVX-512 bitsandbytes decodes FP4's second zero as 0, with it as -0; adding 0 makes them one
    zero = 0.0 if kind == "fp4" and max(map(LEVELS.__getitem__, levels())) < LEVELS["avx512"] else -0.0
    assert_bits(ck.dequantize_4bit(ours, shape, dtype) + zero, theirs.reshape(shape) + zero)
    packed, state = bnb.quantize_4bit(w, quant_type=kind, compress_statistics=True)
    taken = ck.Blockwise4bit(packed.view(-1), state.absmax, state.state2.absmax, state.offset, 64, kind)
    read_back = bnb.dequantize_4bit(packed, state).reshape(shape)
    assert_bits(ck.dequantize_4bit(taken, shape, dtype) + zero, read_back + zero)
    absmax = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    assert_bits(ck.effective_absmax(ours), absmax)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", (32, 64, 256))
def test_c_equals_reference(level: str, kind: str, dtype: torch.dtype, block: int) -> None:
    for count in COUNTS:
        w = weights(count, dtype, seed=count)
        packed, absmax = reference.quantize_4bit(w, block, kind)
        assert_bits(cpu.quantize_4bit(w, block, kind)[0], packed)
        given_scales = absmax * 1.01
        given_scales[0] *= -1  # an effective absmax can be negative
        expected = reference.encode_4bit(w, given_scales, block, kind)
        assert_bits(cpu.encode_4bit(w, given_scales, block, kind), expected)
        for out in DTYPES:
            decoded = reference.dequantize_4bit(packed, given_scales, count, block, kind, out)
            assert_bits(cpu.dequantize_4bit(packed, given_scales, count, block, kind, out), decoded)
        residual = absmax - absmax.mean()
        expected_nested = reference.quantize_absmax(residual)
        for actual, wanted in zip(cpu.quantize_absmax(residual), expected_nested, strict=True):
            assert_bits(actual, wanted)
        restored = reference.dequantize_absmax(*expected_nested, absmax.mean())
        assert_bits(cpu.dequantize_absmax(*expected_nested, absmax.mean()), restored)


def test_c_rounds_every_fp16_and_bf16_like_torch(level: str) -> None:
    """The conversions of the C code over all magnitudes, subnormals and exact ties (NF4's 1.0 times the tie) too."""
    absmax = torch.logspace(-45, 38, 4096, base=10.0) * 1.2345
    bits = absmax.view(torch.int32)
    bits[1::3] = (bits[1::3] & ~0xFFFF) | 0x8000  # halfway between two bf16 numbers
    bits[2::3] = (bits[2::3] & ~0x1FFF) | 0x1000  # halfway between two fp16 numbers
    packed = torch.arange(256, dtype=torch.uint8).repeat(16 * 16)[: 4096 * 16]
    for dtype in (torch.float16, torch.bfloat16):
        expected = reference.dequantize_4bit(packed, absmax, 4096 * 32, 32, "nf4", dtype)
        assert_bits(cpu.dequantize_4bit(packed, absmax, 4096 * 32, 32, "nf4", dtype), expected)


@pytest.mark.parametrize("seed", range(40))
def test_round_trip_within_half_a_gap(seed: int) -> None:
    draw = random.Random(seed)
    kind, block, count = draw.choice(KINDS), draw.choice((32, 64, 128)), draw.randint(1, 700)
    scale = 10 ** draw.uniform(-20, 20)
    w = weights(count, torch.float32, seed) * scale
    q = ck.quantize_4bit(w, kind=kind, block=block, double_quant=False)
    values = codes.code_table(kind, torch.device("cpu")).values.sort().values
    half_gap = (values[1:] - values[:-1]).max() / 2
    error = (ck.dequantize_4bit(q, w.shape, torch.float32) - w).abs()
    assert bool((error <= half_gap * q.absmax.repeat_interleave(block)[:count] * (1 + 1e-5)).all())
    # a second trip changes nothing: decoded values are their own codes
    again = ck.encode_4bit(ck.dequantize_4bit(q, w.shape, torch.float32), q.absmax, kind=kind, block=block)
    decoded = ck.Blockwise4bit(again, q.absmax, None, None, block, kind)
    first, second = (ck.dequantize_4bit(x, w.shape, torch.float32) for x in (q, decoded))
    torch.testing.assert_close(second, first, rtol=0, atol=0)


def test_encode_picks_the_nearest_code_of_the_given_scale() -> None:
    w = weights(6400, torch.float32)
    absmax = ck.effective_absmax(ck.quantize_4bit(w))
    q = ck.Blockwise4bit(ck.encode_4bit(w, absmax), absmax, None, None, 64, "nf4")
    error = (ck.dequantize_4bit(q, w.shape, torch.float32) - w).abs()
    every = (w[:, None] - ck.NF4_CODE[None] * absmax.repeat_interleave(64)[:, None]).abs().amin(dim=1)
    torch.testing.assert_close(error, every, rtol=1e-4, atol=1e-8)


def test_views_and_threads() -> None:
    w = weights(96 * 200, torch.bfloat16).view(96, 200)
    expected = ck.quantize_4bit(w.t().contiguous())
    assert_bits(ck.quantize_4bit(w.t()).codes, expected.codes)
    large = weights(3_000_001, torch.bfloat16)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(ck.quantize_4bit(large))
    torch.set_num_threads(threads)
    assert_bits(results[1].codes, results[0].codes)
    assert_bits(results[2].codes, results[0].codes)
    assert_bits(results[0].codes, reference.quantize_4bit(large, 64, "nf4")[0])


def test_operations_are_well_formed_and_compile() -> None:
    ops = torch.ops.compress_kernels
    w = weights(1000, torch.bfloat16)
    packed, absmax = ops.quantize_4bit(w, 64, "nf4")
    nested = ops.quantize_absmax(absmax - absmax.mean())
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(ops.quantize_4bit.default, (w, 64, "nf4"), test_utils=checks)
    torch.library.opcheck(ops.encode_4bit.default, (w, absmax, 64, "nf4"), test_utils=checks)
    arguments = (packed, absmax, [10, 100], 64, "nf4", torch.bfloat16)
    torch.library.opcheck(ops.dequantize_4bit.default, arguments, test_utils=checks)
    torch.library.opcheck(ops.quantize_absmax.default, (absmax,), test_utils=checks)
    torch.library.opcheck(ops.dequantize_absmax.default, (*nested, absmax.mean()), test_utils=checks)


def test_mistakes_are_explained() -> None:
    w = weights(64, torch.float32)
    with pytest.raises(ValueError, match=r"'int4'.*nf4, fp4"):
        ck.quantize_4bit(w, kind="int4")
    with pytest.raises(ValueError, match="block 48"):
        ck.quantize_4bit(w, block=48)
    with pytest.raises(TypeError, match="float64"):
        ck.quantize_4bit(w.double())
    with pytest.raises(ValueError, match="empty"):
        ck.quantize_4bit(w[:0])
    with pytest.raises(ValueError, match="99 weights"):
        ck.dequantize_4bit(ck.quantize_4bit(w), (99,), torch.float32)
    with pytest.raises(ValueError, match="absmax"):
        ck.encode_4bit(w, torch.ones(2))
