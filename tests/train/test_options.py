"""What training offers besides: checkpointing, 8-bit moments, validation, the best weights, an early end, loggers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import kl_div

from compress.losses.logits import Logits
from compress.train.activations import checkpoint_activations
from compress.train.module import Distillation
from compress.train.settings import Keep, Logger, Schedule, Training
from compress.train.student import held_out_for
from compress.train.validate import Validate, best
from tests.train.helpers import LENGTH, STEPS, Killed, Until, context, distance, pair, text, trained, weights

EIGHT_BIT = {"_target_": "bitsandbytes.optim.AdamW8bit", "betas": [0.9, 0.95], "weight_decay": 0.0}
MEASURED: dict[str, Any] = {"validate_every": 4 * LENGTH, "validate_tokens": 4 * LENGTH}


# a rate at which the loss rises now and then, and in the end
RISING: dict[str, Any] = {**MEASURED, "rate": 0.3, "warmup": 0.0, "schedule": Schedule.constant}


def saved_bytes(module: Distillation, batch: dict[str, Any]) -> tuple[int, torch.Tensor]:
    """What autograd keeps of a step, weights not counted, and the gradient of a norm."""
    kept: dict[int, int] = {}
    own = {p.data_ptr() for p in module.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = module.training_step(batch, 0)
    total = sum(kept.values())
    loss.backward()
    weight: Any = module.student.get_submodule("model.layers.0.input_layernorm").weight
    return total, weight.grad


def test_checkpointing_keeps_less_and_changes_nothing() -> None:
    windows = text()
    batch = {"ids": windows.ids[:4], "lengths": windows.lengths[:4], "rows": torch.arange(4), "share": torch.ones(())}
    student, teacher = pair()
    module = Distillation(student, teacher, Logits(), Training(), steps=4)
    module.eval()
    whole, expected = saved_bytes(module, batch)
    expected = expected.clone()
    student.zero_grad()
    checkpoint_activations(student, True)
    less, found = saved_bytes(module, batch)
    assert torch.equal(found, expected)
    assert less < 0.5 * whole
    assert not any(m.training for name, m in student.named_modules() if not name.endswith(("layers.0", "layers.1")))


def test_checkpointing_trains_to_the_same_weights(tmp_path: Path) -> None:
    _, plain = trained(tmp_path / "plain")
    _, found = trained(tmp_path / "less", activation_checkpointing=True)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": EIGHT_BIT, "activation_checkpointing": True, "accumulate": 2},
        {"optimizer": {"_target_": "torch.optim.Muon"}},
        # the best weights are not the last, and the end comes before the last step
        {**RISING, "keep": Keep.best, "patience": 1, "loggers": [Logger.csv]},
    ],
    ids=["plain", "8 bits", "Muon", "best"],
)
@pytest.mark.parametrize("after", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_goes_on_after_a_kill_to_the_same_weights(settings: dict[str, Any], after: int, tmp_path: Path) -> None:
    undisturbed, expected = trained(tmp_path / "undisturbed", **settings)
    saving = settings | {"checkpoint_seconds": 1e-9}
    with pytest.raises(Killed):
        trained(tmp_path / "killed", Until(after), **saving)
    fitted, found = trained(tmp_path / "killed", **saving)
    assert 0 < fitted.resumed_at < after
    assert fitted.curve == undisturbed.curve and fitted.validations == undisturbed.validations
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    if "loggers" in settings:
        logged = [(tmp_path / name / "logs" / "csv" / "metrics.csv").read_text() for name in ("undisturbed", "killed")]
        assert logged[0] == logged[1]


def test_eight_bit_moments_train_too(tmp_path: Path) -> None:
    """Near what 32 bits give, and not the same."""
    before = weights(pair()[0])
    _, exact = trained(tmp_path / "exact")
    _, found = trained(tmp_path / "found", optimizer=EIGHT_BIT)
    assert 0 < distance(found, exact) < 0.3 * distance(exact, before)


def test_the_best_weights_are_those_of_the_lowest_loss(tmp_path: Path) -> None:
    """Measured anew, with plain logits, on the windows that validation used."""
    fitted, last = trained(tmp_path / "last", **RISING)
    kept, best = trained(tmp_path / "best", **RISING, keep=Keep.best)
    assert [point["step"] for point in kept.validations] == list(range(1, STEPS + 1))
    losses = [point["loss"] for point in kept.validations]
    assert losses.index(min(losses)) < STEPS - 1, losses
    windows = held_out_for(Training(length=LENGTH, batch=4, **MEASURED), context(tmp_path))
    for found, expected in ((last, losses[-1]), (best, min(losses))):
        student, teacher = pair()
        student.load_state_dict(found, strict=False)
        with torch.no_grad():
            s, t = (model(windows).logits[:, :-1].double().log_softmax(-1) for model in (student, teacher))
        assert float(kl_div(s, t, log_target=True, reduction="none").sum(-1).mean()) == pytest.approx(
            expected, rel=1e-4
        )
    assert kept.metrics()["best_step"] == 1 + losses.index(min(losses))
    assert fitted.validations == kept.validations


def test_ends_when_nothing_gets_better(tmp_path: Path) -> None:
    whole, _ = trained(tmp_path / "whole", **RISING)
    early, _ = trained(tmp_path / "early", **RISING, patience=1)
    losses = [point["loss"] for point in whole.validations]
    rises = next(i for i in range(1, STEPS) if losses[i] >= min(losses[:i]))
    assert early.steps == len(early.curve) == rises + 1 < STEPS
    assert early.curve == whole.curve[: early.steps]
    assert early.tokens < whole.tokens


@pytest.mark.parametrize("logger", list(Logger))
def test_loggers_write_the_curve(logger: Logger, tmp_path: Path) -> None:
    if logger is Logger.tensorboard:
        pytest.importorskip("tensorboard")
    fitted, _ = trained(tmp_path, **MEASURED, loggers=[logger])
    folder = tmp_path / "logs" / logger.value
    kl: dict[int, float] = {}
    held_out: dict[int, float] = {}
    if logger is Logger.csv:
        with (folder / "metrics.csv").open() as opened:
            for row in csv.DictReader(opened):
                for name, found in (("kl", kl), ("held_out_kl", held_out)):
                    if row[name]:
                        found[int(row["step"])] = float(row[name])
    else:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder)).Reload()
        kl = {event.step: event.value for event in events.Scalars("kl")}
        held_out = {event.step: event.value for event in events.Scalars("held_out_kl")}
    assert kl == pytest.approx({i + 1: point["kl"] for i, point in enumerate(fitted.curve)}, rel=1e-5)
    assert held_out == pytest.approx({int(point["step"]): point["kl"] for point in fitted.validations}, rel=1e-5)


def test_a_validation_that_is_no_number_is_never_the_best() -> None:
    assert best([{"loss": float("nan")}, {"loss": 2.0}, {"loss": 1.0}]) == 2


def test_validations_are_counted_in_tokens_that_are_read(tmp_path: Path) -> None:
    """A model with fewer positions than train.length asks for trains on shorter windows."""
    settings = Training(length=256, batch=4, validate_every=1024)
    assert Validate(torch.zeros(4, 128), settings, tmp_path, 0).every == 2
    assert Validate(torch.zeros(4, 256), settings, tmp_path, 0).every == 1
