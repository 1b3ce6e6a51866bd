"""Rows rounded together: elimination on the whole Kronecker product, and what the KL itself does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import compress
from compress.arch import adapter_for
from compress.errors import UserError
from compress.grids import Scales, grid_named, value_of
from compress.quant import coupled, output_moments
from compress.quant.coupled import Outputs, descend_together, feed_back, together
from compress.quant.gptq import feedback
from compress.quant.solve import Calibration, damped, solve
from tests.models import save
from tests.pipelines.helpers import tiny_run
from tests.quant.problems import energy, gram_of, layer
from tests.quant.test_gptq import SOME, straightforward


def coupling(rows: int, seed: int, tokens: int = 200) -> Tensor:
    """Second moment of outputs of which a few directions count most."""
    generator = torch.Generator().manual_seed(seed)
    loud = torch.randn(tokens, 5, generator=generator) @ torch.randn(5, rows, generator=generator)
    gradients = loud + 0.5 * torch.randn(tokens, rows, generator=generator)
    return gradients.t() @ gradients / tokens


def correlation(moment: Tensor) -> Tensor:
    size = moment.diagonal().sqrt()
    return moment / size[:, None] / size


@pytest.mark.parametrize("name", ["nf4", "int4_g32_asym", "q4_0"])
def test_row_by_row_it_is_elimination_on_the_kronecker_product(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All weights of the layer as one row of columns, with Hessian G x H: the algorithm that knows no structure."""
    monkeypatch.setattr(coupled, "GROUP", 1)
    grid = grid_named(name)
    weight, inputs = layer(6, 64, seed=1)
    gram = correlation(gram_of(inputs)) + 0.01 * torch.eye(64)  # one diagonal: no order but the first to the last
    g = correlation(coupling(6, seed=2)) + 0.1 * torch.eye(6)
    scales = grid.start(weight)
    ours = value_of(feed_back(weight, gram, Outputs([g]), grid, scales, 1e-9).levels, scales)
    flat = Scales(scales.scale.reshape(1, -1), None if scales.offset is None else scales.offset.reshape(1, -1))
    expected = straightforward(weight.reshape(1, -1), torch.kron(g, gram), grid, flat, 1e-9).view(6, 64).float()
    assert float((ours - expected).abs().amax()) < 1e-4


def test_rows_that_do_not_matter_to_each_other_are_rounded_alone() -> None:
    grid = grid_named("nf4")
    weight, inputs = layer(40, 128, seed=3)
    gram = gram_of(inputs)
    scales = grid.start(weight)
    diagonal = Outputs([torch.diag(torch.rand(24) + 0.1), torch.diag(torch.rand(16) + 0.1)])
    alone = feedback(weight, gram, grid, scales, 0.01)
    assert torch.equal(feed_back(weight, gram, diagonal, grid, scales, 0.01).levels, alone.levels)
    settings = Calibration()
    plain, same = (solve(weight, weight, gram, grid, settings, outputs) for outputs in (None, diagonal))
    assert float((plain.levels == same.levels).float().mean()) > 0.999


@pytest.mark.parametrize("name", SOME)
def test_errors_move_to_where_they_do_not_matter(name: str) -> None:
    """Over more rows than a group has, in two blocks; descent goes on from feedback, and never up."""
    grid = grid_named(name)
    weight, inputs = layer(80, 128, seed=4)
    gram = gram_of(inputs)
    h = damped(gram, 0.01)
    outputs = Outputs([coupling(48, seed=5), coupling(32, seed=6)]).held_back()
    assert outputs is not None
    scales = grid.start(weight)

    def lost(levels: Tensor, chosen: Scales = scales) -> float:
        return outputs.energy(weight - value_of(levels, chosen), h)

    alone = feedback(weight, gram, grid, scales, 0.01).levels
    fed = feed_back(weight, gram, outputs, grid, scales, 0.01).levels
    descended = descend_together(weight, fed, h, outputs, grid, scales).levels
    assert lost(fed) < 0.8 * lost(alone)
    assert lost(descended) < lost(fed)
    rounded, refitted = together(weight, gram, h, outputs, grid, scales, 0.01, rounds=2)
    assert lost(rounded.levels, refitted) < lost(descended)
    assert energy(weight - value_of(rounded.levels, refitted), gram) > energy(weight - value_of(alone, scales), gram)


def test_energy_is_that_of_the_kronecker_product() -> None:
    g, h, error = coupling(6, seed=7), coupling(8, seed=8), torch.randn(6, 8)
    flat = error.reshape(-1)
    expected = float(flat @ torch.kron(torch.block_diag(g[:4, :4], g[4:, 4:]), h) @ flat)
    assert Outputs([g[:4, :4], g[4:, 4:]]).energy(error, h) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_moments_are_the_curvature_of_the_kl(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disturbance v of a layer's outputs, with a random sign at every token, costs v^T G v / 2 of KL a token."""
    monkeypatch.setattr(output_moments, "ROWS", 48)  # so that some layers have several blocks
    _, model = save(family, tmp_path)
    model = model.float().eval()
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(0, model.config.vocab_size, (96, 32), generator=generator)
    paths = adapter_for(model.config).modules.linears(1)
    found = output_moments.output_moments(model, paths, windows, 0, lambda _: None)
    with torch.no_grad():
        before = model(windows).logits.log_softmax(-1)
    for path in paths:
        blocks = found[path].blocks
        assert all(len(block) <= 48 for block in blocks)
        direction = torch.cat([torch.linalg.eigh(block)[1][:, -1] for block in blocks])
        predicted = sum(float(direction[rows] @ block @ direction[rows]) for rows, block in found[path].parts()) / (
            len(windows) * (windows.shape[1] - output_moments.SINKS)
        )
        size = (2e-4 / predicted) ** 0.5
        kl = 0.0
        for _ in range(4):
            signs = torch.randint(0, 2, (len(windows), 32, len(blocks)), generator=generator) * 2.0 - 1
            signs[:, : output_moments.SINKS] = 0
            shift = torch.cat([signs[..., i : i + 1].expand(-1, -1, len(b)) for i, b in enumerate(blocks)], -1)

            added = size * direction * shift
            handle = model.get_submodule(path).register_forward_hook(lambda m, args, out, added=added: out + added)
            with torch.no_grad():
                after = model(windows).logits.log_softmax(-1)
            handle.remove()
            kl += float((before.exp() * (before - after)).sum() / (len(windows) * (32 - output_moments.SINKS))) / 4
        assert kl == pytest.approx(size**2 * predicted / 2, rel=0.2), path


def test_a_model_that_overflows_is_told(tmp_path: Path) -> None:
    _, model = save("llama", tmp_path)
    with torch.no_grad():
        model.get_submodule("model.norm").weight.fill_(torch.inf)
    with pytest.raises(UserError, match="it overflows"):
        output_moments.output_moments(model, [], torch.zeros(1, 16, dtype=torch.long), 0, lambda _: None)


def test_what_is_not_known_leaves_rows_alone() -> None:
    assert Outputs([torch.zeros(4, 4)]).held_back() is None
    assert Outputs([torch.full((4, 4), torch.inf)]).held_back() is None


@pytest.mark.parametrize("pipeline", ["nf4_gptq", "qat_q4_0"])
def test_a_run_says_that_it_looks_at_outputs(pipeline: str, model: Path, text_file: Path, tmp_path: Path) -> None:
    more = ["stages.quant.calibration.output_tokens=256", "stages.quant.calibration.length=32"]
    report = compress.run(tiny_run(pipeline, model, text_file, tmp_path / "with", *more))
    plain = compress.run(
        tiny_run(pipeline, model, text_file, tmp_path / "without", *more, "stages.quant.calibration.output_tokens=0")
    )
    errors, alone = (r["stages"][0]["details"]["output_error"] for r in (report, plain))
    assert errors.keys() == alone.keys()
    assert errors != alone
    assert report["artifacts"][0]["verified"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["quant@stages.quant=nf4"], "is for algorithm=gptq: rtn rounds"),
        (["stages.quant.scaling=awq"], "scaling=awq changes the outputs"),
        (["stages.quant.calibration.output_tokens=-1"], "must not be negative"),
    ],
)
def test_where_rows_cannot_be_rounded_together(
    more: list[str], said: str, model: Path, text_file: Path, tmp_path: Path
) -> None:
    asked = ["stages.quant.calibration.output_tokens=256", *more]
    with pytest.raises(UserError, match=said):
        compress.run(tiny_run("nf4_gptq", model, text_file, tmp_path / "out", *asked))
