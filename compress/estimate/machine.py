"""What this machine can do: memory, matrix products per second, bytes per second. Measured, not looked up.

A run measures with torch, which it has loaded anyway, and keeps the figures in the store; an estimate takes them from
there. The first estimate of all measures fp32 with numpy instead, since importing torch takes longer than estimating.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compress.hardware import memory_bytes, native, native_bf16, processor
from compress.store import Store, content_key

RATES = ("fp32", "bf16", "bandwidth")
SECONDS = 0.2
"""Each figure is the best of as many tries as fit into this: a busy machine is measured at its quietest."""
SIZE = 768
"""Side of the matrices multiplied: milliseconds, so that some tries are left alone even on a busy machine."""
STAND_IN = 0.2
"""Share of that where the figures only stand in for torch's: an estimate is to answer at once."""
COPIED = 1 << 26
"""Bytes copied, beyond any cache."""
BF16_OVER_FP32 = 2.0
"""Assumed until torch has measured, where the processor multiplies bf16 natively (two numbers in the place of one)."""


@dataclass(frozen=True)
class Machine:
    """Figures in bytes, operations per second and bytes per second."""

    cpu: str
    threads: int
    memory: int
    disk: int
    """Free, in the cache folder."""
    native_bf16: bool
    fp32: float
    bf16: float
    bandwidth: float
    measured_by: str

    def computes_in_half(self, dtype: str) -> bool:
        """Whether a model stored as `dtype` computes in its 16 bits."""
        return self.native_bf16 if dtype == "bfloat16" else dtype == "float16" and native(dtype)


def machine(store: Store, threads: int, measure: bool) -> Machine:
    """What is known of this machine.

    Args:
        store: where figures are kept.
        threads: that a run would use.
        measure: measure with torch and keep the best that was ever seen, since a machine is often busy; otherwise what
            is kept counts, or fp32 measured with numpy.
    """
    key = content_key({"cpu": processor()[0], "flags": sorted(processor()[1]), "threads": threads})
    rates = store.recall("machine", key)
    if measure:
        found = _by_torch()
        rates = found if rates is None else {**found, **{name: max(found[name], rates[name]) for name in RATES}}
        store.remember("machine", key, rates)
    return Machine(
        cpu=processor()[0],
        threads=threads,
        memory=memory_bytes(),
        disk=shutil.disk_usage(_existing(store.root)).free,
        native_bf16=native_bf16(),
        **(rates or _by_numpy(threads)),
    )


def as_dict(known: Machine) -> dict[str, Any]:
    """For the report."""
    return asdict(known)


def best_rate(work: Callable[[], object], amount: float, share: float = 1.0) -> float:
    """`amount` per second at the fastest of the tries; `share` of the usual time is spent on them."""
    work()
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < SECONDS * share:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return amount / best


def _by_torch() -> dict[str, Any]:
    import torch

    def product(dtype: torch.dtype) -> float:
        a, b = torch.ones(SIZE, SIZE, dtype=dtype), torch.ones(SIZE, SIZE, dtype=dtype)
        return best_rate(lambda: a @ b, 2.0 * SIZE**3)

    fp32 = product(torch.float32)
    source, target = torch.ones(COPIED // 4), torch.empty(COPIED // 4)
    return {
        "fp32": fp32,
        "bf16": product(torch.bfloat16) if native_bf16() else fp32,
        "bandwidth": best_rate(lambda: target.copy_(source), 2.0 * COPIED),
        "measured_by": "torch",
    }


def _by_numpy(threads: int) -> dict[str, Any]:
    # read when numpy loads its BLAS
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads))
    import numpy as np

    a, b = np.ones((SIZE, SIZE), np.float32), np.ones((SIZE, SIZE), np.float32)
    fp32 = best_rate(lambda: a @ b, 2.0 * SIZE**3, STAND_IN)
    source, target = np.ones(COPIED // 4, np.float32), np.empty(COPIED // 4, np.float32)
    return {
        "fp32": fp32,
        "bf16": fp32 * (BF16_OVER_FP32 if native_bf16() else 1.0),
        "bandwidth": best_rate(lambda: np.copyto(target, source), 2.0 * COPIED, STAND_IN),
        "measured_by": "numpy, fp32 only; the first run measures with torch",
    }


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
