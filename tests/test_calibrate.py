"""Calibration windows: text, and the original's own where its windows are long enough."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from compress.calibrate import calibration_windows
from tests.models import SENTENCES, tiny, tiny_tokenizer


@pytest.mark.parametrize(("own_length", "own_windows"), [(16, 0), (32, 2), (48, 2)])
def test_own_text_below_the_window_is_left_out(own_length: int, own_windows: int) -> None:
    config, _ = tiny("llama")
    own = torch.full((6, own_length), 7)
    context = SimpleNamespace(
        original=SimpleNamespace(config=config, tokenizer=tiny_tokenizer),
        own_text=lambda: own,
        corpus=SimpleNamespace(calibration=list(SENTENCES) * 40),
    )
    windows = calibration_windows(context, tokens=128, length=32)  # type: ignore[arg-type]
    assert windows.shape == (4, 32)
    assert int((windows == 7).all(1).sum()) == own_windows
