"""What the experiments share: CSV rows with date, versions and processor. Imports nothing beyond Python itself."""

from __future__ import annotations

import csv
import datetime
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def processor() -> str:
    """Name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def emulates_bf16() -> bool:
    """Whether this processor has no bf16 of its own: products in it would take a hundred times as long."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else "bf16"
    return "bf16" not in flags


def versions(packages: Sequence[str]) -> str:
    """Those that are installed, such as "torch 2.13.0; numpy 2.4"."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return "; ".join(found)


def read_rows(name: str) -> list[dict[str, str]]:
    """The rows of results/NAME.csv; none if there is no such file."""
    file = RESULTS / f"{name}.csv"
    if not file.exists():
        return []
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def append_row(name: str, row: Mapping[str, Any]) -> None:
    """Add a row to results/NAME.csv, with the date first and the processor last."""
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    full = {"date": date, **row, "processor": processor()}
    file = RESULTS / f"{name}.csv"
    file.parent.mkdir(exist_ok=True)
    fresh = not file.exists()
    with file.open("a", newline="") as opened:
        writer = csv.DictWriter(opened, fieldnames=list(full))
        if fresh:
            writer.writeheader()
        writer.writerow(full)
