"""Speed and memory of a distillation step: ours, the straightforward loop and TRL's trainers, in turns.

    python experiments/distill_speed.py [--trl PYTHON] [--model DIR] [--batch 4] [--length 256] [--trains layers|all]
        [--rounds 5] [--steps 2] [--methods NAME ...] [--checkpointing] [--threads N]

Each method is a process of its own (`distill_step.py`, which says what each does); TRL's run in the environment of
--trl (the python of one made with `python -m venv` and `pip install trl`; left out without it). They take turns: in
every round each trains --steps steps while the others stand still, so that what else the machine does falls on all
alike. The first round warms up and is not counted. All compute in bf16, or in fp32 where the processor has no bf16
products (--precision). Given are the medians over rounds of tokens a second and of tokens a second of processor time
(which other work on the machine hardly changes), and the peak of anonymous memory above what models and optimizer
state occupy.

A row for each goes to experiments/results/distill_speed.csv, and a table to standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tables import append_row, versions

from compress.hardware import native_bf16

HERE = Path(__file__).parent
METHODS = ("ours", "transformers", "trl", "trl_gkd")
OF_TRL = ("trl", "trl_gkd")


class Contestant:
    """A process that trains when it is told to."""

    def __init__(self, method: str, given: argparse.Namespace, model: Path) -> None:
        self.method = method
        python = given.trl if method in OF_TRL else sys.executable
        command = [python, str(HERE / "distill_step.py"), method, "--model", str(model), "--trains", given.trains]
        command += ["--batch", str(given.batch), "--length", str(given.length), "--threads", str(given.threads)]
        command += ["--precision", given.precision]
        command += ["--steps", str((given.rounds + 1) * given.steps + 1)] + ["--checkpointing"] * given.checkpointing
        # threads that spin while another process has their core would count as work
        waiting = {"GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": str(given.threads), "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | waiting, text=True
        )

    def round(self, steps: int) -> dict[str, float]:
        """Train so many steps; what it took."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            # libraries print too
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
        raise SystemExit(f"{self.method} ended with status {self.process.wait()}")

    def end(self) -> None:
        """No more rounds."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def row_of(method: str, rounds: list[dict[str, float]], given: argparse.Namespace) -> dict[str, Any]:
    """Medians, and the largest peak."""
    tokens = given.steps * given.batch * given.length
    packages = ["torch", "transformers", "lightning"]
    return {
        "method": method,
        "batch": given.batch,
        "length": given.length,
        "trains": given.trains,
        "precision": given.precision,
        "checkpointing": given.checkpointing,
        "threads": given.threads,
        "rounds": len(rounds),
        "tokens_per_second": round(tokens / statistics.median(r["seconds"] for r in rounds), 1),
        "tokens_per_cpu_second": round(tokens / statistics.median(r["cpu_seconds"] for r in rounds), 1),
        "peak_mib": round(max(r["peak"] - r["held"] for r in rounds) / 2**20),
        "held_mib": round(max(r["held"] for r in rounds) / 2**20),
        "versions": versions(packages),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, with what ours is to each."""
    ours = next((row for row in rows if row["method"] == "ours"), rows[0])
    lines = [
        "| method | tokens/s | ours is faster by | tokens per CPU second | ours is faster by | peak above state, MiB "
        "| ours needs |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        wall = ours["tokens_per_second"] / row["tokens_per_second"]
        cpu = ours["tokens_per_cpu_second"] / row["tokens_per_cpu_second"]
        lines.append(
            f"| {row['method']} | {row['tokens_per_second']} | {wall:.2f}x | {row['tokens_per_cpu_second']} "
            f"| {cpu:.2f}x | {row['peak_mib']} | {ours['peak_mib'] / row['peak_mib']:.0%} |"
        )
    return "\n".join(lines)


def options() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", help="python of an environment with TRL")
    parser.add_argument("--model", type=Path, help="the embedded one by default")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--trains", choices=("layers", "all"), default="layers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16" if native_bf16() else "fp32")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args()


def main() -> None:
    """All methods, in turns."""
    given = options()
    model = given.model
    if model is None:
        from compress.source import EmbeddedModel

        model = EmbeddedModel().resolve().folder
    methods = [method for method in given.methods if given.trl or method not in OF_TRL]
    contestants = [Contestant(method, given, model) for method in methods]
    took: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    for number in range(given.rounds + 1):
        for contestant in contestants:
            found = contestant.round(given.steps)
            if number:
                took[contestant.method].append(found)
            print(f"round {number}, {contestant.method}: {json.dumps(found)}", file=sys.stderr, flush=True)
    for contestant in contestants:
        contestant.end()
    rows = [row_of(method, took[method], given) for method in methods]
    for row in rows:
        append_row("distill_speed", row)
    print(table(rows))


if __name__ == "__main__":
    main()
