"""Text a model writes itself."""

from __future__ import annotations

import torch

from compress.runtime.sampling import _draw, chat_opening, sample_windows
from tests.models import tiny, tiny_tokenizer


def nothing(units: float) -> None:
    del units


def test_shape_seed_and_openings() -> None:
    _, model = tiny("llama")
    tokenizer = tiny_tokenizer()
    a = sample_windows(model, tokenizer, 10, 24, 0, nothing)
    assert a.shape == (10, 24) and a.dtype == torch.int64 and int(a.max()) < len(tokenizer)
    assert torch.equal(a, sample_windows(model, tokenizer, 10, 24, 0, nothing))
    assert not torch.equal(a, sample_windows(model, tokenizer, 10, 24, 1, nothing))
    opening = chat_opening(tokenizer)
    assert opening and sum(row[: len(opening)].tolist() == opening for row in a) == 5


def test_tokens_are_the_models_own() -> None:
    """Every token after the opening is among those the model holds likely there."""
    _, model = tiny("llama")
    windows = sample_windows(model, tiny_tokenizer(), 4, 20, 0, nothing)
    with torch.no_grad():
        p = model(windows).logits.softmax(-1)
    start = len(chat_opening(tiny_tokenizer()))
    chosen = p[:, start:-1].gather(-1, windows[:, start + 1 :, None]).squeeze(-1)
    larger = (p[:, start:-1] * (p[:, start:-1] > chosen[..., None])).sum(-1)
    assert bool((larger < 0.951).all())


def test_a_sure_model_leaves_no_choice() -> None:
    logits = torch.zeros(3, 50)
    logits[:, 7] = 100
    assert _draw(logits, torch.Generator().manual_seed(0)).flatten().tolist() == [7, 7, 7]


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(20000, 3)
    drawn = _draw(logits, torch.Generator().manual_seed(0)).flatten()
    frequency = torch.bincount(drawn, minlength=3) / len(drawn)
    assert torch.allclose(frequency, torch.tensor([0.5, 0.3, 0.2]), atol=0.02)
