"""What both benchmarks share: alternating timing, peak memory of one call, a printed table, a CSV row."""

from __future__ import annotations

import csv
import ctypes
import datetime
import platform
import threading
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from compress_kernels import backend_name

RESULTS = Path(__file__).parent / "results.csv"
COLUMNS = ("date", "operation", "case", "form", "value", "unit", "peak_mib")
ABOUT = ("backend", "processor", "threads", "versions")


def alternate(forms: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Best seconds of each form. The forms take turns, so that a busy machine slows all of them alike."""
    best = dict.fromkeys(forms, float("inf"))
    for form in forms.values():
        form()
    for _ in range(rounds):
        for name, form in forms.items():
            begin = time.perf_counter()
            form()
            best[name] = min(best[name], time.perf_counter() - begin)
    return best


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) * 1024


def peak_bytes(form: Callable[[], object]) -> int:
    """How far one call raises the process' anonymous memory, sampled every half millisecond (Linux, glibc).

    The allocator first gives back what earlier calls left free, or a call could hide in it.
    """
    ctypes.CDLL(None).malloc_trim(0)
    stop, peak = threading.Event(), [0]

    def watch() -> None:
        while not stop.wait(0.0005):
            peak[0] = max(peak[0], _anonymous_bytes())

    before = _anonymous_bytes()
    watcher = threading.Thread(target=watch)
    watcher.start()
    form()
    stop.set()
    watcher.join()
    return max(0, peak[0] - before)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    family = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    wide = "avx512" if "avx512f" in family.get("flags", "") else "avx2" if "avx2" in family.get("flags", "") else ""
    return f"{family.get('model name', platform.machine())} {wide}".strip()


def _versions() -> str:
    found = []
    for package in ("torch", "triton", "bitsandbytes"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return "; ".join(found)


def record(operation: str, rows: list[tuple[str, str, float, str, float | None]]) -> None:
    """Print (case, form, value, unit, peak MiB) as a table and append it to results.csv."""
    print(f"{operation}: {_processor()}, {torch.get_num_threads()} threads, {_versions()}")
    for case, form, value, unit, peak in rows:
        print(f"  {case:34} {form:22} {value:9.3f} {unit:14} {'' if peak is None else f'{peak:8.1f} MiB'}")
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    about = (backend_name("cpu"), _processor(), torch.get_num_threads(), _versions())
    fresh = not RESULTS.exists() or RESULTS.stat().st_size == 0
    with RESULTS.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(COLUMNS + ABOUT)
        for case, form, value, unit, peak in rows:
            figure = "" if peak is None else f"{peak:.1f}"
            writer.writerow((date, operation, case, form, f"{value:.4f}", unit, figure, *about))
