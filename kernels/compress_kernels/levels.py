"""The instruction sets of the C code, and which of them runs."""

from __future__ import annotations

from functools import cache

from compress_kernels.native import load_library

LEVELS = {"portable": 0, "avx2": 1, "avx512": 2, "vnni": 3}
_forced_level: list[int] = []  # empty, or the one level that force_level asked for


def force_level(name: str | None) -> None:
    """Use one instruction set ("portable", "avx2", "avx512", "vnni"), or the processor's best again with None.

    For tests and benchmarks. Raises ValueError if the processor cannot run it.
    """
    best = _best_level()
    if name is not None and (name not in LEVELS or LEVELS[name] > best):
        usable = ", ".join(level for level, rank in LEVELS.items() if rank <= best)
        raise ValueError(f"instruction set {name!r} is not usable here: expected one of {usable}")
    _forced_level[:] = [] if name is None else [LEVELS[name]]


@cache
def _best_level() -> int:
    return int(load_library().ck_cpu_level())


def level() -> int:
    """The instruction set in use, as the C code numbers it."""
    return _forced_level[0] if _forced_level else _best_level()
