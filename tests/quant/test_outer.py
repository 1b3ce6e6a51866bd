"""Embedding and head on grids: the error that counts falls, in pieces as in one, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.arch import adapter_for
from compress.grids import grid_named, level_of, value_of
from compress.quant import outer
from compress.quant.outer import exact_levels, output_gram, put_outer_on_grids, solve_rows
from compress.quant.scales import search
from compress.quant.solve import Calibration, Solved, energy
from compress.quant.stage import Algorithm
from compress.runtime.loading import load_model
from compress.train.module import last_hidden
from tests.models import save

GRIDS = ("q5_1", "q4_0", "int8", "int4_g64_asym", "nf4", "nf4_b64_single")


def matrix(rows: int = 192, columns: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and a second moment with few loud directions, as final hidden states have."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(512, columns, generator=generator) @ torch.randn(columns, columns, generator=generator) / 8
    x[:, 5] *= 10
    gram = x.t() @ x / len(x)
    return torch.randn(rows, columns, generator=generator), gram / gram.diagonal().mean()


@pytest.mark.parametrize("name", GRIDS)
def test_feedback_costs_the_output_less_than_searched_scales(name: str) -> None:
    weight, gram = matrix()
    grid = grid_named(name)
    found = solve_rows(weight, gram, grid, Calibration())
    scales = search(weight, grid)
    searched = energy(value_of(level_of(weight, scales, grid), scales) - weight, gram) / energy(weight, gram)
    assert found.error < 0.6 * float(searched)
    assert found.error < found.error_rtn


@pytest.mark.parametrize("name", GRIDS)
def test_in_pieces_as_in_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = matrix()
    whole = solve_rows(weight, gram, grid_named(name), Calibration())
    monkeypatch.setattr(outer, "CHUNK", 64 * weight.shape[1])
    pieces = solve_rows(weight, gram, grid_named(name), Calibration())
    if name == "nf4":  # whose scales are rounded together, over all rows
        assert pieces.error == pytest.approx(whole.error, rel=0.05)
    else:
        assert torch.equal(pieces.levels, whole.levels)
        assert torch.equal(pieces.scales.scale, whole.scales.scale)
    packed = grid_named(name).pack(pieces.levels, pieces.scales, torch.float32)
    exact = exact_levels(pieces.levels, grid_named(name))
    assert torch.allclose(grid_named(name).decode(packed), value_of(exact, pieces.scales), atol=1e-6)


def test_the_moment_of_what_the_head_reads(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, dtype=torch.float32)
    windows = torch.randint(0, model.config.vocab_size, (3, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = last_hidden(model, windows).flatten(0, 1)
    expected = states.t() @ states / len(states)
    assert torch.allclose(output_gram(model, windows), expected / expected.diagonal().mean(), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2", "gpt_neox"])
def test_a_tied_matrix_is_solved_once_and_a_head_of_its_own_too(family: str, tmp_path: Path) -> None:
    save(family, tmp_path)
    model = load_model(tmp_path, dtype=torch.float32)
    windows = torch.randint(0, model.config.vocab_size, (3, 32), generator=torch.Generator().manual_seed(0))
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    modules = adapter_for(model.config).modules
    paths = [modules.embedding] if model.config.tie_word_embeddings else [modules.embedding, modules.head]
    gram = output_gram(model, windows)
    found: dict[str, Solved] = {}
    grid = grid_named("q4_0")
    asked = Calibration(algorithm=Algorithm.gptq)
    put_outer_on_grids(model, dict.fromkeys(paths, grid), windows, asked, found.__setitem__, lambda _: None)
    assert list(found) == paths
    for path, weight in zip(paths, (embedding, head), strict=False):
        assert torch.equal(weight, value_of(found[path].levels, found[path].scales))
    head = modules.embedding if model.config.tie_word_embeddings else modules.head
    dense = before[f"{head}.weight"]
    scales = search(dense, grid)
    rounded = value_of(level_of(dense, scales, grid), scales)
    feedback = value_of(found[head].levels, found[head].scales)
    # the output on what the head reads is what is kept
    assert energy(feedback - dense, gram) < 0.9 * energy(rounded - dense, gram)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {f"{path}.weight" for path in paths}
