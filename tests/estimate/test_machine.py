"""The machine's figures: plausible, kept, and never worse for having been measured again."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.estimate import machine as module
from compress.estimate.machine import RATES, best_rate, machine
from compress.store import Store


def test_a_run_measures_and_an_estimate_remembers(tmp_path: Path) -> None:
    store = Store(tmp_path)
    quick = machine(store, 1, measure=False)
    assert "numpy" in quick.measured_by and not (tmp_path / "machine").exists()
    measured = machine(store, 1, measure=True)
    assert measured.measured_by == "torch" and measured == machine(store, 1, measure=False)
    for known in (quick, measured):
        assert 1e8 < known.fp32 < 1e14 and 1e8 < known.bandwidth < 1e13 and known.memory > 1 << 30


def test_a_busy_moment_does_not_make_the_machine_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    rates = {"fp32": 4.0, "bf16": 8.0, "bandwidth": 2.0, "measured_by": "torch"}
    monkeypatch.setattr(module, "_by_torch", lambda: dict(rates))
    machine(store, 2, measure=True)
    rates |= {"fp32": 1.0, "bandwidth": 3.0}
    known = machine(store, 2, measure=True)
    assert [getattr(known, name) for name in RATES] == [4.0, 8.0, 3.0]
    # another number of threads is another machine
    assert machine(store, 1, measure=True).fp32 == 1.0


def test_the_best_try_counts() -> None:
    waits = iter([0.0, 0.02, 0.001, 0.03, *[0.01] * 1000])

    def work() -> None:
        import time

        time.sleep(next(waits))

    assert 1 / 0.02 < best_rate(work, 1.0) < 1 / 0.001


def test_bf16_is_native_where_torch_says_so() -> None:
    import torch

    assert module.native_bf16() == torch.cpu._is_avx512_bf16_supported()


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    from compress import hardware

    whole = psutil.virtual_memory().total
    for content, expected in (("max\n", whole), ("1048576\n", 1 << 20), (str(1 << 62), whole)):
        (tmp_path / "limit").write_text(content)
        monkeypatch.setattr(hardware, "LIMITS", (str(tmp_path / "limit"), "/nowhere"))
        assert hardware.memory_bytes() == expected
