"""Muon and AdamW as one optimizer: each as torch has it, on what is its own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from compress.train.module import Distillation
from compress.train.muon import WideMuon, orthogonal
from compress.train.optimizer import make_optimizer
from compress.train.settings import Training
from tests.train.helpers import pair

MUON = {"_target_": "torch.optim.Muon", "momentum": 0.95, "betas": [0.9, 0.95], "weight_decay": 0.0}


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in ((6, 4), (5,), (9, 4))]
    made[2].table = True  # type: ignore[attr-defined]
    return made


def step(optimizers: list[Any], parameters: list[torch.nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for optimizer in optimizers:
        optimizer.step()


def test_each_takes_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.train.muon.native_bf16", lambda: True)
    ours, theirs = parameters(), parameters()
    both = make_optimizer(MUON, ours, 1e-2)
    muon = torch.optim.Muon(theirs[:1], lr=2e-2, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(theirs[1:], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    assert sorted(group["lr"] for group in both.param_groups) == [1e-2, 2e-2]
    for seed in range(3):
        step([both], ours, seed)
        step([muon, adamw], theirs, seed)
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("settings", [{}, {"nesterov": False, "weight_decay": 0.1}, {"adjust_lr_fn": "original"}])
@pytest.mark.parametrize("size", [(24, 40), (40, 24), (16, 16)])
def test_wide_steps_are_those_of_torch_but_for_rounding(
    size: tuple[int, int], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.train.muon.native_bf16", lambda: False)
    start = torch.randn(size, generator=torch.Generator().manual_seed(0))
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    wide: Any = make_optimizer(MUON | settings, [ours], 1e-2)
    assert [type(part) for part in wide.parts] == [WideMuon]
    muon = torch.optim.Muon([theirs], lr=2e-2, **{"weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"} | settings)
    for seed in range(3):
        step([wide], [ours], seed)
        step([muon], [theirs], seed)
    apart, moved = (float((after - theirs).detach().norm()) for after in (ours, start))
    assert apart < 0.02 * moved


@pytest.mark.parametrize("size", [(24, 40), (40, 24)])
def test_orthogonal_moves_the_singular_values_alone(size: tuple[int, int]) -> None:
    matrix = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b, c = coefficients = (3.4445, -4.7750, 2.0315)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / matrix.norm()
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    found = orthogonal(matrix, coefficients, 5, 1e-7)
    torch.testing.assert_close(found.double(), left @ torch.diag(values) @ right, rtol=1e-4, atol=1e-4)
    assert bool(((values > 0.6) & (values < 1.3)).all())


def test_scales_of_a_grid_are_no_matrix() -> None:
    from compress.grids import grid_named, level_of
    from compress.quant.fake import GridWeight

    grid, weight = grid_named("nf4"), torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    scales = grid.start(weight)
    on_grid = GridWeight(level_of(weight, scales, grid), scales, weight, grid)
    both: Any = make_optimizer(MUON, on_grid.parameters(), 1e-2)
    muon, adamw = both.parts
    assert [p is on_grid.latent for p in muon.param_groups[0]["params"]] == [True]
    assert [p is on_grid.factor for p in adamw.param_groups[0]["params"]] == [True]


def test_a_schedule_and_a_saved_state_reach_both() -> None:
    ours, again = parameters(), parameters()
    first = make_optimizer(MUON, ours, 1e-2)
    halved = torch.optim.lr_scheduler.LambdaLR(first, lambda _: 0.5)
    step([first], ours, 0)
    halved.step()
    assert sorted(group["lr"] for group in first.param_groups) == [5e-3, 1e-2]
    second = make_optimizer(MUON, again, 1e-2)
    with torch.no_grad():
        for parameter, saved in zip(again, ours, strict=True):
            parameter.copy_(saved)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    step([first], ours, 1)
    step([second], again, 1)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


def test_embedding_and_norms_are_not_orthogonalized() -> None:
    student, teacher = pair()
    student.requires_grad_(True)
    module = Distillation(student, teacher, lambda *_: None, Training(optimizer=MUON), steps=4)  # type: ignore[arg-type]
    optimizer: Any = module.configure_optimizers()["optimizer"]
    names = {id(p): name for name, p in student.named_parameters()}
    muon, adamw = ({names[id(p)] for group in part.param_groups for p in group["params"]} for part in optimizer.parts)
    assert all("proj" in name and name.endswith("weight") for name in muon)
    assert any("embed" in name for name in adamw) and any("norm" in name for name in adamw)
    assert muon | adamw == set(names.values())
