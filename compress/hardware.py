"""What this machine is: its processor, and the memory a process may have of it."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container, or a job of a cluster, reads its own limit (cgroup versions 2 and 1)."""


@cache
def processor() -> tuple[str, frozenset[str]]:
    """Its name and flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return found.get("model name", platform.machine()), frozenset(found.get("flags", "").split())


def native_bf16() -> bool:
    """Whether training on this processor computes in bf16 (`compress.train.fit.lightning_precision` asks torch)."""
    return "avx512_bf16" in processor()[1]


def memory_bytes() -> int:
    """All memory there is for us: the machine's, or a container's limit."""
    import psutil

    limits = [int(psutil.virtual_memory().total)]
    for file in LIMITS:
        try:
            limits.append(int(Path(file).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(limit for limit in limits if limit > 0)
