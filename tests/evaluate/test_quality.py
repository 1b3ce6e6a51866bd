"""Perplexity, KL and agreement against plain computations on full logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from compress.evaluate.quality import measure, measure_itself, reference
from compress.evaluate.size import count_parameters
from tests.models import VARIANTS, tiny


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


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_counted_once(name: str) -> None:
    config, model = tiny(name)
    total, _ = count_parameters(config)
    assert total == sum(p.numel() for p in model.parameters())
