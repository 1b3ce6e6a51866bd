"""How fast artifacts are, each in its own runtime, taking turns.

python experiments/runtime_speed.py outputs/RUN/artifacts/* [--decode 32] [--rounds 3] [--threads N]

Every folder was written by a run of `python -m compress`, which says what the artifact costs in quality. The prompt is
the text it was compared on (256 tokens). Each runtime is a process of its own, alive all the time; one is asked at a
time, round by round, and the best round counts. Rows are appended to results/runtime_speed.csv.
"""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from pathlib import Path

from tables import append_row

from compress.export import probe
from compress.export.fresh import FreshProcess
from compress.preparation import available_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--decode", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=available_threads())
    options = parser.parse_args()
    with ExitStack() as stack:
        asked = []
        for folder in options.artifacts:
            found = probe.kept(folder)
            if found is None:
                parser.error(f"{folder} is no artifact of a run: it has no {probe.FILE}")
            longest = len(found.ids) + options.decode
            process = FreshProcess(found.facts["runtime"], folder, options.threads, longest)
            asked.append((folder, found, stack.enter_context(process)))
        best: dict[Path, dict[str, float]] = {folder: {} for folder, *_ in asked}
        for _ in range(options.rounds):
            for folder, found, process in asked:
                for figure, rate in process.speed(found.ids, options.decode).items():
                    best[folder][figure] = max(round(rate, 1), best[folder].get(figure, 0.0))
    rows = [
        {
            "artifact": folder.name,
            "format": found.facts["format"],
            "runtime": found.facts["runtime"],
            "bytes": sum(file.stat().st_size for file in weights(folder)),
            **best[folder],
            "prompt": len(found.ids),
            "threads": options.threads,
            "load": round(os.getloadavg()[0], 1),
        }
        for folder, found, _ in asked
    ]
    for row in rows:
        print(row, flush=True)
        append_row("runtime_speed", row)


def weights(folder: Path) -> list[Path]:
    """The files that hold weights: what is large."""
    return [file for file in folder.iterdir() if file.suffix in (".gguf", ".onnx", ".data", ".pte", ".safetensors")]


if __name__ == "__main__":
    main()
