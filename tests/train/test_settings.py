"""The schedule, the budget, and progress that survives a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.train.resume import saved_progress
from compress.train.settings import Schedule, Training, rate_at


@pytest.mark.parametrize("schedule", list(Schedule))
def test_rises_then_falls(schedule: Schedule) -> None:
    settings = Training(warmup=0.1, schedule=schedule, final_rate=0.1)
    rates = [rate_at(step, 100, settings) for step in range(100)]
    assert rates[:10] == sorted(rates[:10]) and 0 < rates[0] < 0.2
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1.0 if schedule is Schedule.constant else 0.1, abs=0.02)


def test_one_step_is_enough() -> None:
    assert rate_at(0, 1, Training()) == 1.0


def test_damaged_progress_is_not_used(tmp_path: Path) -> None:
    import hashlib

    whole, damaged = b"whole", b"half"
    good = tmp_path / f"progress-{hashlib.sha256(whole).hexdigest()}.ckpt"
    good.write_bytes(whole)
    bad = tmp_path / f"progress-{hashlib.sha256(b'other').hexdigest()}.ckpt"
    bad.write_bytes(damaged)
    import os

    os.utime(bad, (2e9, 2e9))
    assert saved_progress(tmp_path) == good
    good.unlink()
    assert saved_progress(tmp_path) is None
