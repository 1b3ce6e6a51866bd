"""Perplexity, KL and agreement against plain computations on full logits."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from compress.checkpoint import Checkpoint
from compress.evaluate.evaluator import Evaluator
from compress.evaluate.quality import Tally, measure, measure_itself, reference
from compress.evaluate.settings import Evaluation
from compress.evaluate.size import count_parameters
from compress.stage import DENSE, Quiet
from compress.store import Store
from tests.models import VARIANTS, save, tiny

CPU = torch.device("cpu")


def nothing(units: float) -> None:
    del units


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2", "gpt_neox", "qwen2"])
def test_equals_a_plain_computation(family: str) -> None:
    _, original = tiny(family)
    _, model = tiny(family, seed=1)
    windows = torch.randint(3, 300, (3, 24), generator=torch.Generator().manual_seed(0))
    found = measure(model, reference(original, windows, nothing), nothing)
    with torch.no_grad():
        s, t = model(windows).logits[:, :-1].double(), original(windows).logits[:, :-1].double()
    nll = cross_entropy(s.flatten(0, 1), windows[:, 1:].flatten())
    kl = kl_div(s.log_softmax(-1), t.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert found.ppl == pytest.approx(math.exp(nll), rel=1e-4)
    assert found.kl_to_teacher == pytest.approx(float(kl.mean()), rel=1e-4)
    assert found.top1_agreement == pytest.approx(float((s.argmax(-1) == t.argmax(-1)).double().mean()))
    assert found.kl_stderr == pytest.approx(float(kl.mean(1).std() / math.sqrt(3)), rel=1e-3)
    assert (found.windows, found.scored_tokens) == (3, 3 * 23)


def test_original_against_itself() -> None:
    _, model = tiny("llama")
    windows = torch.randint(3, 300, (2, 24))
    seen = reference(model, windows, nothing)
    found = measure(model, seen, nothing)
    assert found.kl_to_teacher < 1e-6 and found.top1_agreement == 1
    assert measure_itself(seen, model.device, nothing) == found


def test_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    config, model = tiny("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    windows = torch.randint(3, 300, (2, 24))
    found = measure(model, reference(model, windows, nothing), nothing)
    assert found.ppl == pytest.approx(config.vocab_size, rel=1e-4)


def test_what_is_not_a_number_is_not_good() -> None:
    tally = Tally()
    for bad in (1.0, float("nan")):
        values = torch.tensor([0.1, bad])
        tally.add(values, values, torch.tensor([True, False]))
    found = tally.quality()
    assert math.isnan(found.kl_to_teacher) and math.isnan(found.ppl)


def test_the_original_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("llama", tmp_path / "model")
    original, other = (Checkpoint(tmp_path / "model", frozenset({DENSE})) for _ in range(2))
    text = SimpleNamespace(heldout=("The state of the union is strong. " * 40,), name="a text")
    evaluator = Evaluator(
        Evaluation(tokens=128, window=64), original, {"": text}, {}, Store(tmp_path / "store"), Quiet(), CPU
    )
    loaded: list[Checkpoint] = []
    load = evaluator.load
    monkeypatch.setattr(evaluator, "load", lambda checkpoint, *_: loaded.append(checkpoint) or load(checkpoint))
    found = evaluator.quality(original, "weights")
    assert loaded == [original] and found["kl_to_teacher"] < 1e-6
    again = evaluator.quality(other, "the same under another name")
    assert loaded == [original, other] and again == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_counted_once(name: str) -> None:
    config, model = tiny(name)
    total, _ = count_parameters(config)
    assert total == sum(p.numel() for p in model.parameters())
