"""Several processes end where one ends, go on after a kill as one does, and say in words what went wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.data.windows import Windows
from compress.errors import UserError
from compress.losses.logits import Logits
from compress.stage import Context, Quiet
from compress.train.fit import Fitted, fit
from compress.train.settings import Precision, Training
from compress.train.strategy import check_strategies, deepspeed_config
from tests.models import tiny

STEPS = 6


def context(folder: Path) -> Context:
    from lightning.fabric import Fabric

    nothing: Any = None
    return Context(folder, folder, nothing, None, nothing, nothing, Fabric(accelerator="cpu", devices=1), Quiet())


def text() -> Windows:
    """Windows of very different lengths: a mean of the processes' means would be another loss."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 300, (4 * STEPS, 24), generator=generator, dtype=torch.int32)
    return Windows(ids, torch.randint(8, 25, (4 * STEPS,), generator=generator, dtype=torch.int32))


def trained(folder: Path, **settings: Any) -> tuple[Fitted, dict[str, Tensor], dict[str, Tensor]]:
    """What training says, the weights it left and those it started from."""
    folder.mkdir(exist_ok=True)
    (_, student), (_, teacher) = (
        tiny("llama-tied", seed=1, num_hidden_layers=2),
        tiny("llama-tied", num_hidden_layers=2),
    )
    student.get_submodule("model.layers.0.mlp").requires_grad_(False)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    given = {"batch": 4, "length": 24, "rate": 1e-3, "precision": Precision.fp32, "checkpoint_seconds": 0.0} | settings
    fitted = fit(student, teacher, Logits(), text(), Training(**given), context(folder))
    return fitted, {name: p.detach() for name, p in student.named_parameters()}, before


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[name] - b[name]).square().sum()) for name in a) ** 0.5


@pytest.mark.parametrize("settings", [{"strategy": "ddp"}, {"strategy": "fsdp"}, {"accumulate": 2}], ids=str)
def test_ends_within_rounding_of_one_process(settings: dict[str, Any], tmp_path: Path) -> None:
    from compress.train.settings import Strategy

    if "strategy" in settings:
        settings = {"strategy": Strategy(settings["strategy"]), "devices": 2}
    one, expected, before = trained(tmp_path / "one")
    several, found, _ = trained(tmp_path / "several", **settings)
    assert set(found) == set(expected)
    assert distance(found, expected) < 1e-3 * distance(expected, before)
    assert all(torch.equal(found[name], before[name]) for name in before if "layers.0.mlp" in name)
    assert several.steps == one.steps == len(several.curve)
    assert [p["kl"] for p in several.curve] == pytest.approx([p["kl"] for p in one.curve], rel=1e-4)
    assert [p["rate"] for p in several.curve] == pytest.approx([p["rate"] for p in one.curve])
