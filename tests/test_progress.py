"""Without a terminal a long step is heard of now and then, and a short one not at all."""

from __future__ import annotations

import time

import pytest

from compress import progress
from compress.progress import SILENCE, STILL, Lines, Terminal


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_come_now_and_then_with_the_time_left(clock: list[float]) -> None:
    said: list[str] = []
    advance = Lines("training", 100, said.append)
    advance(40)  # a resumed run: at once, and no measure of its speed
    for _ in range(50):
        clock[0] += SILENCE / 10
        advance(1)
    assert len(said) == 5
    assert said[0] == f"  training: 50 of 100, {SILENCE / 10 * 50:.0f} s left"
    clock[0] += 2 * SILENCE
    advance(10)  # done: the bar's own line says so
    assert len(said) == 5


def test_a_step_that_cannot_say_how_far_it_is_says_that_it_is_at_work(clock: list[float]) -> None:
    said: list[str] = []
    lines = Lines("writing executorch", 1, said.append)
    for _ in range(10):
        clock[0] += 0.3 * STILL
        lines.still()
    assert said == [f"  writing executorch: at work since {n * 0.3 * STILL:.0f} s" for n in (4, 8)]


def test_a_silent_step_is_heard_of_from_beside(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "STILL", 0.05)
    with Terminal(bars=False).bar("writing executorch", 1):
        time.sleep(0.5)
    assert "  writing executorch: at work since 0 s\n" in capsys.readouterr().err


def test_short_steps_say_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal(bars=False).bar("scoring", 3) as advance:
        for _ in range(3):
            clock[0] += 0.1
            advance(1)
    assert capsys.readouterr().err == ""


def test_a_long_step_says_how_long_it_took(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """In plain words: names in brackets stay, and nothing else comes in them."""
    with Terminal(bars=False).bar("reading [mine]", 3) as advance:
        clock[0] += 12.4
        advance(3)
    assert capsys.readouterr().err == "  reading [mine] 12 s\n"
