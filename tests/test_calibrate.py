"""Calibration windows: text, and the original's own, whatever the length it was written in."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch

from compress import calibrate
from compress.arch.linears import linear_paths
from compress.calibrate import calibration_windows, input_grams
from compress.data.windows import spread_windows
from compress.stage import Quiet
from tests.models import SENTENCES, tiny, tiny_tokenizer


@pytest.mark.parametrize(("own_length", "own_windows"), [(0, 0), (5, 0), (8, 1), (16, 2), (24, 2), (32, 2), (48, 2)])
def test_half_of_the_windows_are_own_text_if_there_is_enough(own_length: int, own_windows: int) -> None:
    config, _ = tiny("llama")
    own = torch.full((6, own_length), 7)
    context = SimpleNamespace(
        original=SimpleNamespace(config=config, tokenizer=tiny_tokenizer, rows=None),
        own_text=lambda: own,
        corpus=SimpleNamespace(calibration=list(SENTENCES) * 40),
        seed=0,
    )
    windows = calibration_windows(context, tokens=128, length=32)  # type: ignore[arg-type]
    assert windows.shape == (4, 32)
    assert int((windows == 7).all(1).sum()) == own_windows


def test_windows_come_from_many_documents() -> None:
    """As many as there are windows, from their middles too, no document twice before all were seen, none joined."""
    words = [f"{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(60)]
    documents = [" ".join([word] * 400) for word in words]
    windows = spread_windows(documents, tiny_tokenizer(), length=32, tokens=60 * 32, seed=0)
    assert windows.shape == (60, 32)
    seen = [set(tiny_tokenizer().decode(window).split()) & set(words) for window in windows]
    assert all(len(found) == 1 for found in seen)
    assert len(set.union(*seen)) == 60
    again = spread_windows(documents, tiny_tokenizer(), length=32, tokens=60 * 32, seed=0)
    other = spread_windows(documents, tiny_tokenizer(), length=32, tokens=60 * 32, seed=1)
    assert torch.equal(windows, again) and not torch.equal(windows, other)


def test_one_book_is_sampled_all_over() -> None:
    book = " ".join(f"chapter{number}" for number in range(3000))
    windows = spread_windows([book], tiny_tokenizer(), length=64, tokens=40 * 64, seed=0)
    assert len(windows) == 40
    places = sorted(int(tiny_tokenizer().decode(w).split("chapter")[2].strip() or 0) for w in windows)
    assert places[0] < 600 and places[-1] > 2000


def test_documents_below_a_window_give_none_and_are_not_looped_over() -> None:
    assert spread_windows(["a b c", ""] * 50, tiny_tokenizer(), length=64, tokens=640, seed=0).shape == (0, 64)
    assert spread_windows([], tiny_tokenizer(), length=64, tokens=640, seed=0).shape == (0, 64)


def test_second_moments_of_one_part_are_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    config, model = tiny("llama")
    context = SimpleNamespace(
        original=SimpleNamespace(config=config, tokenizer=tiny_tokenizer, rows=None),
        own_text=lambda: torch.zeros(0, 8, dtype=torch.long),
        corpus=SimpleNamespace(calibration=list(SENTENCES) * 40),
        seed=0,
        fabric=SimpleNamespace(device="cpu"),
        progress=Quiet(),
    )
    widths = {path: model.get_submodule(path).in_features for path in linear_paths(config)[:5]}
    square = (max(widths.values()),) * 2
    monkeypatch.setattr(calibrate, "GRAM_BYTES", 4)  # one at a time
    alive, walk = [], calibrate.walk

    def counting(*args) -> None:
        gc.collect()
        alive.append(sum(torch.is_tensor(o) and o.shape == square for o in gc.get_objects()))
        walk(*args)

    before = sum(torch.is_tensor(o) and o.shape == square for o in gc.get_objects())
    monkeypatch.setattr(calibrate, "walk", counting)
    seen = [path for part in input_grams(model, widths, context, 128) for path in list(part)]  # type: ignore[arg-type]
    assert seen == list(widths)
    assert max(alive) - before <= 1, alive
