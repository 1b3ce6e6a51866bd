"""The fused norm: transformers' own in value and gradient, on every instruction set, whatever the threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from compress_kernels import rms_norm, rms_norm_reference
from compress_kernels.levels import LEVELS, force_level
from torch import Tensor

SHAPES = [(1, 5), (3, 7), (5, 64), (2, 4, 300), (33, 576)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPSILON = 1e-5


@pytest.fixture(params=[*LEVELS, "torch"])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "torch":
        monkeypatch.setenv("COMPRESS_KERNELS", "reference")
        yield
        return
    try:
        force_level(request.param)
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    yield
    force_level(None)


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    x = (3 * torch.randn(shape, generator=generator)).to(dtype).requires_grad_()
    weight = (1 + 0.5 * torch.randn(shape[-1], generator=generator)).requires_grad_()
    return x, weight, torch.randn(shape, generator=generator)


def exact(x: Tensor, weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """transformers' layer in double: result and both gradients."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    wide = x.detach().double().requires_grad_()
    layer = LlamaRMSNorm(x.shape[-1], eps=EPSILON).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
    # the layer itself computes in fp32: the same formula, in double
    out = layer.weight * wide * (wide.square().mean(-1, keepdim=True) + layer.variance_epsilon).rsqrt()
    assert torch.allclose(layer(wide).double(), out, rtol=1e-5, atol=1e-5)
    out.backward(gradient.double())
    assert wide.grad is not None and layer.weight.grad is not None
    return out.detach(), wide.grad, layer.weight.grad


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, gradient = inputs(shape, dtype)
    out, of_x, of_weight = exact(x, weight, gradient)
    found = rms_norm(x, weight, EPSILON, torch.float32)
    assert torch.allclose(found.double(), out, rtol=1e-5, atol=1e-6)
    found.backward(gradient)
    assert x.grad is not None and weight.grad is not None and x.grad.dtype == dtype
    rounding = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}[dtype]
    assert torch.allclose(x.grad.double(), of_x, rtol=rounding, atol=rounding * float(of_x.abs().max()))
    assert torch.allclose(weight.grad.double(), of_weight, rtol=1e-5, atol=1e-5 * float(of_weight.abs().max() + 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_result_is_rounded_once(dtype: torch.dtype) -> None:
    """In any type it is what the fp32 result rounds to."""
    x, weight, _ = inputs((33, 576), torch.float32)
    with torch.no_grad():
        assert torch.equal(rms_norm(x, weight, EPSILON, dtype), rms_norm(x, weight, EPSILON, torch.float32).to(dtype))
        near = rms_norm_reference(x, weight, EPSILON, dtype)
    assert torch.allclose(near.float(), rms_norm(x, weight, EPSILON, dtype).float(), rtol=1e-2)


def test_threads_change_no_bit() -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            x, weight, gradient = inputs((257, 576), torch.float32)
            out = rms_norm(x, weight, EPSILON, torch.bfloat16)
            out.backward(gradient.bfloat16())
            results.append([out, x.grad, weight.grad])
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


def test_frozen_weight_gets_no_gradient_and_a_view_is_read_as_it_is() -> None:
    x, weight, gradient = inputs((6, 40), torch.float32)
    weight.requires_grad_(False)
    turned = x.detach().t().contiguous().t().requires_grad_()
    for given in (x, turned):
        rms_norm(given, weight, EPSILON, torch.float32).backward(gradient)
    assert weight.grad is None and x.grad is not None
    assert torch.equal(x.grad, turned.grad)


def test_widths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="width of x"):
        rms_norm(torch.zeros(2, 8), torch.zeros(4), EPSILON, torch.float32)
