"""Training through a grid: it starts on the calibrated codes, computes what will be stored, and merges exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.grids import GRIDS, Scales, grid_named, level_of, per_column, value_of
from compress.quant.fake import GridLinear, GridWeight, put_on_grid
from compress.quant.gptq import feedback
from compress.quant.inputs import RoundedInputs
from compress.quant.scales import search
from compress.quant.stage import Activations
from tests.quant.problems import gram_of, layer


def on_grid(name: str, seed: int = 0) -> tuple[GridWeight, Tensor, Scales]:
    """A calibrated weight, its levels and scales; a zero row is among them."""
    grid = grid_named(name)
    weight, inputs = layer(32, 128, seed=seed)
    weight[5] = 0
    gram = gram_of(inputs)
    scales = search(weight, grid, gram.diagonal())
    rounded = feedback(weight, gram, grid, scales)
    # kept in half precision between calibration and training
    return GridWeight(rounded.levels.half().float(), scales, rounded.goal, grid), rounded.levels, scales


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_training_starts_on_the_calibrated_codes(name: str) -> None:
    weight, levels, scales = on_grid(name)
    final_levels, final_scales = weight.final()
    grid = weight.grid
    stored = grid.pack(levels, scales, torch.float32)
    assert torch.equal(final_levels, levels)
    torch.testing.assert_close(weight(torch.float32), grid.decode(stored), rtol=1e-6, atol=1e-8)
    again = grid.pack(final_levels, final_scales, torch.float32)
    assert torch.equal(again.parts[next(iter(again.parts))], stored.parts[next(iter(stored.parts))])
    doubled = name.startswith(("nf4", "fp4")) and not name.endswith("single")
    moved = float((grid.decode(again) - grid.decode(stored)).norm() / grid.decode(stored).norm())
    assert moved < (0.02 if doubled else 1e-6)  # scales are quantized again


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_levels_kept_in_half_precision_are_the_same_codes(name: str) -> None:
    weight, levels, scales = on_grid(name)
    pack = weight.grid.pack
    whole, half = (pack(kept, scales, torch.float32).parts for kept in (levels, levels.half()))
    assert all(torch.equal(whole[part], half[part]) for part in whole)


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_what_was_trained_is_what_is_stored(name: str) -> None:
    """After latents and factors have moved: the forward pass equals the decoded codes, but for rounded scales."""
    weight, _, _ = on_grid(name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        weight.latent += torch.randn(weight.latent.shape, generator=generator)
        weight.factor += 0.05 * torch.randn(weight.factor.shape, generator=generator)
    levels, scales = weight.final()
    decoded = weight.grid.decode(weight.grid.pack(levels, scales, torch.float32))
    trained = weight(torch.float32)
    doubled = name.startswith(("nf4", "fp4")) and not name.endswith("single")
    error = float((decoded - trained.detach()).norm() / trained.detach().norm())
    assert error < (0.03 if doubled else 0.004), error


def surrogate(u: Tensor, d: Tensor, scales: Scales, table: Tensor, name: str) -> Tensor:
    """The same weight by autograd's own operations: q(u) = u + (q(u) - u) held constant, and clamped outside."""
    columns = u.shape[1]
    rounded = (u[..., None] - table).abs().argmin(-1)
    low, high = 2 * table[0] - table[1], 2 * table[-1] - table[-2]
    through = torch.minimum(torch.maximum(u, low), high)
    q = through + (table[rounded] - through).detach()
    scale = per_column(scales.scale, columns) * (1 + d.repeat_interleave(columns // d.shape[1], 1))
    if name.endswith("asym"):
        return (q - per_column(scales.stored["zero"].float(), columns)) * scale
    return q * scale if scales.offset is None else q * scale + per_column(scales.offset, columns)


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_gradient_is_that_of_the_surrogate(name: str) -> None:
    torch.manual_seed(1)  # a latent halfway between two levels may go either way in another precision
    weight, _, scales = on_grid(name)
    with torch.no_grad():
        weight.latent += 2 * torch.randn(weight.latent.shape)  # some beyond the table
        weight.factor += 0.05 * torch.randn(weight.factor.shape)
    direction = torch.randn(weight.latent.shape)
    (weight(torch.float32) * direction).sum().backward()
    u = weight.latent.detach().double().requires_grad_(True)
    d = weight.factor.detach().double().requires_grad_(True)
    expected = surrogate(u, d, scales, weight.table.double(), name)
    torch.testing.assert_close(weight(torch.float32).double(), expected, rtol=1e-4, atol=1e-4)
    (expected * direction).sum().backward()
    assert weight.latent.grad is not None and weight.factor.grad is not None
    torch.testing.assert_close(weight.latent.grad.double(), u.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weight.factor.grad.double(), d.grad, rtol=1e-4, atol=1e-5 * float(d.grad.abs().max()))


@pytest.mark.parametrize("name", ["nf4", "q4_0", "int4_g64_asym", "int8"])
def test_low_rank_merges_exactly(name: str) -> None:
    weight, levels, _ = on_grid(name)
    weight.add_low_rank(4)
    assert torch.equal(weight.final()[0], levels)  # B starts at zero
    assert weight.low_rank is not None
    with torch.no_grad():
        weight.low_rank[1].copy_(torch.randn(weight.low_rank[1].shape))
    unmerged = weight(torch.float32)
    assert not torch.equal(weight.final()[0], levels)
    merged = GridWeight(levels, Scales(weight.start, weight.offset, _zero(weight)), unmerged.detach(), weight.grid)
    with torch.no_grad():
        merged.latent.copy_(weight.whole_latent())
    assert torch.equal(merged(torch.float32), unmerged)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(weight(torch.float32), unmerged)  # as it is trained
    a, b = weight.low_rank
    (weight(torch.float32) ** 2).sum().backward()
    assert a.grad is not None and b.grad is not None and float(b.grad.norm()) > 0 and float(a.grad.norm()) > 0


def _zero(weight: GridWeight) -> dict[str, Tensor]:
    return {} if weight.zero is None else {"zero": weight.zero}


@pytest.mark.parametrize("family", ["llama-biases", "gpt2"])
@pytest.mark.parametrize("activations", Activations)
def test_layers_compute_what_a_dense_model_of_the_decoded_weights_does(family: str, activations: Activations) -> None:
    from compress.arch import adapter_for
    from compress.arch.linears import linear_paths
    from compress.quant.calibrated import weight_of
    from tests.models import tiny

    _, model = tiny(family)
    _, dense = tiny(family)
    grid, conv1d = grid_named("q4_0"), adapter_for(model.config).modules.conv1d
    weights = {}
    ids = torch.arange(5, 37)[None]
    paths = linear_paths(model.config)
    with torch.no_grad():
        for path in paths:
            w = weight_of(model.get_submodule(path), conv1d)
            scales = grid.start(w)
            levels = level_of(w, scales, grid)
            value = value_of(levels, scales)
            weights[path] = GridWeight(levels, scales, w.clone(), grid)
            dense.get_submodule(path).weight.copy_(value.t() if conv1d else value)
        inputs = RoundedInputs(activations, dict.fromkeys(paths, 2.5))
        put_on_grid(model, weights, inputs)
        assert sum(isinstance(m, GridLinear) for m in model.modules()) == len(paths)
        with inputs.on(dense, paths):
            torch.testing.assert_close(model(ids).logits, dense(ids).logits, rtol=1e-3, atol=1e-3)
