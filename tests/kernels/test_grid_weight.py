"""Rounding weights that train: the C kernel gives the reference's bits, and the reference what autograd gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from compress_kernels import cpu, reference, round_weight, round_weight_backward
from compress_kernels.levels import LEVELS, force_level

from tests.kernels.sweeps import SHAPES, TABLES, latent_weight

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=LEVELS)
def instructions(request: pytest.FixtureRequest) -> Iterator[None]:
    try:
        force_level(request.param)
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    yield
    force_level(None)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_c_kernel_gives_the_bits_of_the_reference(shape: tuple[int, int, int], table: str) -> None:
    for shifted in (True, False):
        weight = latent_weight(*shape, table, shifted)
        for dtype in DTYPES:
            (got, codes), (wanted, places) = cpu.round_weight(weight, dtype), reference.round_weight(weight, dtype)
            assert torch.equal(got, wanted) and torch.equal(codes, places)
            gradient = torch.randn(weight.latent.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
            back = cpu.round_weight_backward(weight, codes, gradient)
            expected = reference.round_weight_backward(weight, codes, gradient)
            assert torch.equal(back.latent, expected.latent)
            size = float(weight.table.abs().max()) * weight.width
            torch.testing.assert_close(back.scale, expected.scale, rtol=1e-6, atol=1e-6 * size)
            torch.testing.assert_close(back.shift, expected.shift, rtol=1e-6, atol=1e-6 * weight.width)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("shifted", [True, False])
def test_gradients_are_autograds_with_the_rounding_passed_straight_through(table: str, shifted: bool) -> None:
    weight = latent_weight(6, 2, 32, table, shifted, seed=2)
    weight.latent[0, 0] = 0.4 * weight.table[1]  # which way a tie goes is the other test's
    levels = weight.table.double()
    u, s = weight.latent.double().requires_grad_(), weight.scale.double().requires_grad_()
    z = None if weight.shift is None else weight.shift.double().requires_grad_()
    distance = (u.detach()[..., None] - levels).abs()
    through = u.clamp(float(2 * levels[0] - levels[1]), float(2 * levels[-1] - levels[-2]))
    q = through + (levels[distance.argmin(-1)] - through).detach()
    value = q * s.repeat_interleave(32, 1) + (0 if z is None else z.repeat_interleave(32, 1))
    got, codes = round_weight(weight, torch.float32)
    torch.testing.assert_close(got.double(), value.detach(), rtol=1e-6, atol=1e-6)
    gradient = torch.randn(got.shape, generator=torch.Generator().manual_seed(3))
    (value * gradient).sum().backward()
    found = round_weight_backward(weight, codes, gradient)
    inside = torch.ones_like(got, dtype=torch.bool)
    inside[-1, -1] = False  # exactly at the end of the reach: clamp's own gradient there is another choice
    torch.testing.assert_close(found.latent[inside].double(), u.grad[inside], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.scale.double(), s.grad, rtol=1e-4, atol=1e-3)
    if z is not None:
        torch.testing.assert_close(found.shift.double(), z.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(threads: int) -> None:
    weight = latent_weight(3000, 2, 64, "nf4", True)
    gradient = torch.randn(weight.latent.shape)
    expected, codes = cpu.round_weight(weight, torch.bfloat16)
    wanted = cpu.round_weight_backward(weight, codes, gradient)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(cpu.round_weight(weight, torch.bfloat16)[0], expected)
        found = cpu.round_weight_backward(weight, codes, gradient)
        assert all(torch.equal(getattr(found, n), getattr(wanted, n)) for n in ("latent", "scale", "shift"))
    finally:
        torch.set_num_threads(before)


def test_what_does_not_fit_is_refused() -> None:
    weight = latent_weight(4, 2, 32, "nf4", True)
    codes = torch.zeros(4, 64, dtype=torch.uint8)
    wrong = {
        "latent": weight.latent.double(),
        "scale": torch.rand(4, 3),
        "shift": torch.rand(4, 1),
        "table": torch.arange(300, dtype=torch.float32),
    }
    for name, tensor in wrong.items():
        with pytest.raises(ValueError, match=name):
            round_weight(replace(weight, **{name: tensor}), torch.float32)
    with pytest.raises(ValueError, match="codes"):
        round_weight_backward(weight, codes.int(), weight.latent)
    with pytest.raises(ValueError, match="gradient"):
        round_weight_backward(weight, codes, weight.latent[:2])
