"""Several processes, and several pieces, end where one ends; what cannot work is refused in words."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from compress.distill.stage import Distill
from compress.errors import UserError
from compress.recover.stage import QLoRA
from compress.train.batches import Batches
from compress.train.settings import Keep, Logger, Strategy, Training
from compress.train.strategy import check_trainings, deepspeed_config
from tests.train.helpers import STEPS, distance, pair, text, trained, weights

VALIDATED: dict[str, Any] = {"validate_every": 200, "validate_tokens": 96, "keep": Keep.best}


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": Strategy.ddp, "devices": 2},
        # rates of their own reach the divided weights, the best ones are put together, steps are made in pieces
        {"strategy": Strategy.fsdp, "devices": 2, "accumulate": 2, **VALIDATED},
        {"accumulate": 4},
    ],
    ids=["ddp", "fsdp", "accumulate"],
)
def test_ends_within_rounding_of_one_process(settings: dict[str, Any], tmp_path: Path) -> None:
    def own_rate(student: Any) -> None:
        student.model.norm.weight.rate_factor = 10.0

    before = weights(pair()[0])
    one, expected = trained(tmp_path / "one", prepare=own_rate, **(VALIDATED if "keep" in settings else {}))
    several, found = trained(tmp_path / "several", prepare=own_rate, **settings)
    assert distance(found, expected) < 1e-3 * distance(expected, before)
    assert all(torch.equal(found[name], before[name]) for name in before if "layers.0.mlp" in name)
    assert several.steps == one.steps == len(several.curve) == STEPS
    for name in ("loss", "kl", "rate"):
        assert [point[name] for point in several.curve] == pytest.approx([p[name] for p in one.curve], rel=1e-3)
    losses = [[point["loss"] for point in fitted.validations] for fitted in (one, several)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert len(losses[0]) == (3 if "keep" in settings else 0)


def test_shares_make_up_for_lengths() -> None:
    """Shares are to each other as scored tokens, and are 1 on average; every window is read once."""
    windows = text()
    settings = Training(batch=4, accumulate=2, devices=2)
    ranks = [list(Batches(windows, settings, STEPS, rank)) for rank in range(2)]
    assert [len(rank) for rank in ranks] == [2 * STEPS] * 2
    seen = [
        batch for step in range(STEPS) for k in range(2) for batch in (ranks[0][2 * step + k], ranks[1][2 * step + k])
    ]
    assert torch.equal(torch.cat([batch["ids"] for batch in seen]), windows.ids)
    for step in range(STEPS):
        pieces = seen[4 * step : 4 * step + 4]
        scored = torch.tensor([float((piece["lengths"] - 1).sum()) for piece in pieces])
        shares = torch.stack([piece["share"] for piece in pieces])
        assert torch.allclose(shares, 4 * scored / scored.sum())
    whole = list(Batches(windows, Training(batch=4), STEPS))
    assert all(batch["share"] == 1.0 for batch in whole)


def test_a_process_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is no number is the user's to mend, wherever it is found; nothing goes on running."""
    from compress.train import processes

    def spoil(student: Any) -> None:
        with torch.no_grad():
            student.model.norm.weight.fill_(float("nan"))

    started: list[subprocess.Popen[str]] = []

    class Noted(processes.Worker):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            started.append(self.process)

    monkeypatch.setattr(processes, "Worker", Noted)
    with pytest.raises(UserError, match=r"became nan at step 1[\s\S]*train\.rate"):
        trained(tmp_path, prepare=spoil, devices=2)
    assert len(started) == 2 and all(process.poll() is not None for process in started)
    assert not list(tmp_path.glob("processes-*"))


CHECKED: dict[str, tuple[Any, str, str]] = {
    "deepspeed on a CPU": (Distill(train=Training(strategy=Strategy.deepspeed, devices=2)), "cpu", "strategy=ddp"),
    "fsdp on codes": (QLoRA(train=Training(strategy=Strategy.fsdp, devices=2)), "cpu", "stages.it.train.strategy=ddp"),
    "8 bits on divided weights": (
        Distill(
            train=Training(strategy=Strategy.fsdp, devices=2, optimizer={"_target_": "bitsandbytes.optim.AdamW8bit"})
        ),
        "cpu",
        "strategy=ddp",
    ),
    "Muon on divided weights": (
        Distill(train=Training(strategy=Strategy.fsdp, devices=2, optimizer={"_target_": "torch.optim.Muon"})),
        "cpu",
        "train=default",
    ),
    "GPUs that are not there": (Distill(train=Training(batch=4, devices=4)), "cuda", "GPUs"),
    "no DeepSpeed": (Distill(train=Training(strategy=Strategy.deepspeed, devices=2)), "cuda", "pip install deepspeed"),
    "no TensorBoard": (Distill(train=Training(loggers=[Logger.tensorboard])), "cpu", "[tensorboard]"),
}


@pytest.mark.parametrize("case", CHECKED)
def test_refused_in_words(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    stage, device, said = CHECKED[case]
    with pytest.raises(UserError) as caught:
        check_trainings({"it": stage}, device)
    assert said in str(caught.value), str(caught.value)


def test_what_can_train_is_not_refused() -> None:
    for settings in (Training(devices=2), Training(strategy=Strategy.fsdp, devices=2), Training(loggers=[Logger.csv])):
        check_trainings({"it": Distill(train=settings)}, "cpu")


def test_deepspeed_gets_the_same_global_batch() -> None:
    """Its own rule: train_batch_size = micro batch x accumulation x GPUs; Lightning's own check of the config passes.
    Untested beyond this: it needs CUDA."""
    from lightning.pytorch.strategies import DeepSpeedStrategy

    settings = Training(batch=16, accumulate=2, devices=4, strategy=Strategy.deepspeed, clip=0.5)
    trainer = SimpleNamespace(accumulate_grad_batches=settings.accumulate, gradient_clip_val=settings.clip)
    strategy = SimpleNamespace(config=deepspeed_config(settings), lightning_module=SimpleNamespace(trainer=trainer))
    DeepSpeedStrategy._format_batch_size_and_grad_accum_config(strategy)
    config = strategy.config
    assert config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 4 == 16
    assert config["gradient_clipping"] == 0.5 and config["zero_optimization"]["stage"] == 2


@pytest.mark.parametrize(
    "optimizer",
    [
        {"_target_": "torch.optim.AdmaW"},
        {"_target_": "torch.optim.AdamW", "beta": 1},
        {"_target_": "torch.optim.AdamW", "fused": True, "foreach": True},
        {"_target_": "torch.optim.SparseAdam"},
        {"_target_": "torch.optim.LBFGS"},
    ],
    ids=str,
)
def test_an_optimizer_that_does_not_work_is_refused_before_the_work(optimizer: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="optimizer"):
        check_trainings({"it": Distill(train=Training(optimizer=optimizer))}, "cpu")


def test_an_optimizer_without_the_fused_step() -> None:
    check_trainings(
        {"it": Distill(train=Training(optimizer={"_target_": "torch.optim.AdamW", "foreach": True}))}, "cpu"
    )
