"""Matching the inside of the teacher: the right layers, the formula, a projection that trains and is dropped."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.data.windows import Windows
from compress.errors import UserError
from compress.losses.matching import Kept, LayerMap, Matched, projection
from compress.losses.terms import Terms
from compress.stage import Quiet
from compress.train.module import Distillation
from compress.train.settings import Training
from tests.models import tiny


def pair(**student: Any) -> tuple[Any, Any]:
    return tiny("llama", seed=1, **student)[1], tiny("llama")[1]


def batch() -> dict[str, Tensor]:
    ids = torch.randint(3, 300, (3, 20), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([20, 7, 13], dtype=torch.int32)
    return {"ids": ids.int(), "lengths": lengths, "rows": torch.arange(3), "share": torch.ones(())}


def test_a_layer_in_front_of_dropped_ones_ends_where_they_ended() -> None:
    found = LayerMap.of((0, 1, 4, 6), 8)
    assert found.starts == (0, 1, 4, 6) and found.ends == (0, 3, 5, 7)
    assert LayerMap.uniform(4, 4).ends == (0, 1, 2, 3)
    assert LayerMap.uniform(2, 6).starts == (0, 3) and LayerMap.uniform(2, 6).ends == (2, 5)


def test_a_student_deeper_than_its_teacher_ends_where_its_layers_stand() -> None:
    found = LayerMap.uniform(5, 3)
    assert found.starts == (0, 0, 1, 1, 2) and found.ends == (0, 0, 1, 1, 2)
    student, teacher = pair(num_hidden_layers=6)
    assert teacher.config.num_hidden_layers < 6
    loss = Matched(Terms(hidden=0.5, attention=0.5), student, teacher, None)
    net = Distillation(student, teacher, loss, Training(), steps=4)
    assert torch.isfinite(net.training_step(batch(), 0))


def states(model: Any, kind: str, layer: int, ids: Tensor) -> Tensor:
    """From what transformers itself hands out: the stream after a layer, or the normed stream before it."""
    streams = model.base_model
    noted: list[Tensor] = []
    block = streams.layers[layer]
    handle = block.register_forward_hook(lambda _, inputs, output: noted.extend((inputs[0], output)))
    with torch.no_grad():
        streams(input_ids=ids)
    handle.remove()
    return noted[1] if kind == "hidden" else block.input_layernorm(noted[0]).detach()


@pytest.mark.parametrize("kind", ["hidden", "attention"])
def test_equals_the_formula(kind: str) -> None:
    """Depth-pruned: two of four layers, which the plan says are the first and the third."""
    student, teacher = pair(num_hidden_layers=2)
    kept = Kept((0, 2), tuple(range(64)))
    given = batch()
    totals = []
    for terms in (Terms(), Terms(**{kind: 0.5})):
        loss = Matched(terms, student, teacher, kept) if terms.matching else terms
        net = Distillation(student, teacher, loss, Training(), steps=4)
        totals.append(net.training_step(given, 0))
    expected = []
    for own, other in enumerate((1, 3) if kind == "hidden" else (0, 2)):
        s, t = states(student, kind, own, given["ids"]), states(teacher, kind, other, given["ids"])
        error = (s - t).square().sum(-1) / t.square().sum(-1)
        rows = [error[row, : int(n) - 1] for row, n in enumerate(given["lengths"])]
        expected.append(torch.cat(rows).mean())
    torch.testing.assert_close(totals[1] - totals[0], 0.5 * torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)


def test_a_model_matches_itself() -> None:
    (_, model), (_, same) = tiny("qwen3"), tiny("qwen3")
    net = Distillation(model, same, Matched(Terms(hidden=1, attention=1), model, same, None), Training(), steps=4)
    assert abs(float(net.training_step(batch(), 0))) < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "smollm3"])
def test_gradients_reach_every_layer_of_every_family(family: str) -> None:
    """The first layer's too, with nothing but the inside to learn from."""
    (_, student), (_, teacher) = tiny(family, seed=1), tiny(family)
    terms = Terms(kl=0.0, hidden=1.0, attention=1.0)
    net = Distillation(student, teacher, Matched(terms, student, teacher, None), Training(), steps=4)
    net.training_step(batch(), 0).backward()
    assert all(p.grad is not None and float(p.grad.norm()) > 1e-6 for n, p in student.named_parameters() if "mlp" in n)


def test_projection_trains_is_saved_and_is_no_part_of_the_student() -> None:
    student, teacher = pair(hidden_size=32)
    before = dict.fromkeys(student.state_dict())
    loss = Matched(Terms(hidden=1.0, attention=1.0), student, teacher, None)
    net = Distillation(student, teacher, loss, Training(), steps=4)
    net.training_step(batch(), 0).backward()
    projections = {n for n, p in net.named_parameters() if "projections" in n and p.grad is not None and p.grad.any()}
    assert projections == {"loss.projections.hidden.weight", "loss.projections.attention.weight"}
    checkpoint: dict[str, Any] = {"state_dict": net.state_dict()}
    net.on_save_checkpoint(checkpoint)
    assert projections < set(checkpoint["state_dict"])
    optimizer = net.configure_optimizers()["optimizer"]
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in net.parameters()} == trained
    loss.close()
    assert set(student.state_dict()) == set(before)
    student(batch()["ids"])
    assert not loss._seen


@pytest.mark.parametrize("kind", ["hidden", "attention"])
def test_states_are_let_go_where_layers_are_computed_again(kind: str) -> None:
    """Activation checkpointing runs every layer once more in the backward pass, hooks and all."""
    student, teacher = pair()
    student.gradient_checkpointing_enable({"use_reentrant": False})
    student.train()
    net = Distillation(student, teacher, Matched(Terms(**{kind: 1.0}), student, teacher, None), Training(), steps=4)
    net.training_step(batch(), 0).backward()
    assert not net.loss._seen
    assert all(p.grad is not None for p in student.model.layers.parameters())


def test_goes_to_another_process_with_its_models() -> None:
    """Pickled and read back in one piece, the hooks note what the copies compute."""
    import pickle

    student, teacher = pair(hidden_size=32)
    loss = Matched(Terms(hidden=1.0, attention=0.5), student, teacher, None)
    copied = pickle.loads(pickle.dumps((student, teacher, loss)))
    totals = []
    for ours, theirs, terms in (copied, (student, teacher, loss)):
        totals.append(float(Distillation(ours, theirs, terms, Training(), 4).training_step(batch(), 0).detach()))
    assert totals[0] == totals[1]


def test_projection_starts_where_the_plan_put_the_channels() -> None:
    weight = projection(3, 5, (0, 2, 4)).weight
    x = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(weight @ x, torch.tensor([1.0, 0, 2.0, 0, 3.0]))
    anywhere = projection(3, 5, None).weight
    torch.testing.assert_close(anywhere.T @ anywhere, torch.eye(3), rtol=0, atol=1e-5)
    assert torch.equal(anywhere, projection(3, 5, None).weight)


def test_nonsense_is_refused() -> None:
    with pytest.raises(UserError, match=r"loss.hidden=-1"):
        Terms(hidden=-1)


def test_killed_training_goes_on_with_its_projection_and_ends_in_the_same_bits(tmp_path: Path) -> None:
    """Width-pruned by half: student and projection after a kill are those of an undisturbed run."""
    from compress.train.fit import fit

    windows = Windows(torch.randint(3, 300, (12, 16), dtype=torch.int32), torch.full((12,), 16, dtype=torch.int32))
    settings = Training(length=16, batch=2, checkpoint_seconds=1e-6)

    def run(scratch: Path, dies_at: int = -1) -> dict[str, Tensor]:
        scratch.mkdir(exist_ok=True)
        resuming = any(scratch.glob("progress-*"))
        device = SimpleNamespace(device=torch.device("cpu"))
        context: Any = SimpleNamespace(scratch=scratch, progress=Quiet(), fabric=device, logs=None)
        student, teacher = pair(hidden_size=32, num_hidden_layers=2)
        loss = Matched(Terms(hidden=1.0, attention=1.0), student, teacher, None)
        calls: list[None] = []

        def fails(*_: object) -> None:
            calls.append(None)
            if len(calls) == dies_at:
                raise OSError("killed")

        loss.register_forward_pre_hook(fails)
        fitted = fit(student, teacher, loss, windows, settings, context)
        assert fitted.steps == 6 and len(calls) == 6 - fitted.resumed_at
        assert (fitted.resumed_at > 0) == resuming
        return student.state_dict() | loss.state_dict()

    torch.manual_seed(0)
    undisturbed = run(tmp_path / "a")
    with pytest.raises(OSError, match="killed"):
        run(tmp_path / "b", dies_at=4)
    assert any(tmp_path.glob("b/progress-*"))
    torch.manual_seed(7)
    resumed = run(tmp_path / "b")
    assert undisturbed.keys() == resumed.keys() and "projections.hidden.weight" in resumed
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
