"""One training in several processes of this machine.

Each is `python -m compress.train.worker FOLDER`, a process that knows this training and nothing of the command that was
typed: inside a sweep too none of them composes a config or runs a stage (Lightning's own launchers start the whole
command again, and under Hydra's multirun another sweep). FOLDER holds the job; weights in it are mapped, so that all
processes share one copy of the teacher. Rank 0 tells its progress on standard output and leaves the trained weights.
A process ends when its standard input does: none outlives the one that has started it.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compress.errors import UserError
from compress.train.fit import Fitted, Job
from compress.train.settings import Keep
from compress.train.validate import BEST, load_weights

if TYPE_CHECKING:
    from compress.stage import Progress

JOB, WEIGHTS, FITTED = "job.pt", "weights.safetensors", "fitted.json"
CLUSTER = ("RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK")
"""What a cluster's environment may say, and is not about these processes."""
POLL = 0.2
GRACE = 2.0
"""Seconds in which the others may still say why they failed."""


def train_in_processes(job: Job, progress: Progress) -> Fitted:
    """Train `job.student` in place, in `job.settings.devices` processes.

    Raises:
        UserError: what one of them found wrong.
        RuntimeError: one of them failed.
    """
    with tempfile.TemporaryDirectory(dir=job.scratch, prefix="processes-") as name, ExitStack() as stack:
        folder = Path(name)
        torch.save(job, folder / JOB)
        port = free_port()
        workers = [Worker(folder, rank, job.settings.devices, port) for rank in range(job.settings.devices)]
        for worker in workers:
            stack.callback(worker.end)
        follow(workers, progress)
        best = job.settings.keep is Keep.best
        load_weights(job.student, job.scratch / BEST if best else folder / WEIGHTS)
        return Fitted(**json.loads((folder / FITTED).read_text(encoding="utf-8")))


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Worker:
    """One process, started."""

    def __init__(self, folder: Path, rank: int, devices: int, port: int) -> None:
        self.folder, self.rank = folder, rank
        threads = max(1, torch.get_num_threads() // devices)
        environment = {name: value for name, value in os.environ.items() if name not in CLUSTER}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
        with (folder / f"stderr-{rank}.txt").open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "compress.train.worker", str(folder), str(threads)],
                env=environment | {"OMP_NUM_THREADS": str(threads)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                encoding="utf-8",
                errors="replace",
            )
        self.told: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # libraries print too
            if line.startswith(MARK):
                self.told.put(json.loads(line.removeprefix(MARK)))

    def problem(self) -> UserError | RuntimeError:
        """Why it failed."""
        told = self.folder / f"error-{self.rank}.json"
        if told.exists():
            return UserError(*json.loads(told.read_text(encoding="utf-8")))
        last = (self.folder / f"stderr-{self.rank}.txt").read_text(encoding="utf-8", errors="replace")[-4000:]
        return RuntimeError(f"training process {self.rank} ended with status {self.process.returncode}:\n{last}")

    def end(self) -> None:
        """Let it be gone."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()


MARK = "compress-training "
"""In front of what a process tells the one that has started it."""


def follow(workers: list[Worker], progress: Progress) -> None:
    """Show what rank 0 tells until all have ended.

    Raises:
        UserError, RuntimeError: why one has failed.
    """
    with ExitStack() as bars:
        advance = None
        while True:
            ended = [worker.process.poll() for worker in workers]
            while not workers[0].told.empty():
                told = workers[0].told.get()
                if "say" in told:
                    progress.say(told["say"])
                elif "total" in told:
                    advance = bars.enter_context(progress.bar(told["bar"], told["total"]))
                elif advance is not None:
                    advance(told["units"])
            if any(ended):
                time.sleep(GRACE)
                # what is the user's to mend comes first: the others only miss the one that has stopped
                problems = [worker.problem() for worker in workers if worker.process.poll()]
                raise min(problems, key=lambda problem: not isinstance(problem, UserError))
            if all(status == 0 for status in ended):
                return
            time.sleep(POLL)
