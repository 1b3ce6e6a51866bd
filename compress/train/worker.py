"""One process of a training in several: `python -m compress.train.worker FOLDER THREADS`, started by `processes`."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from compress.errors import UserError
from compress.stage import Advance
from compress.train.fit import Job, train
from compress.train.processes import FITTED, JOB, MARK, WEIGHTS
from compress.train.validate import trained_weights


class Told:
    """Progress that is told, a line of JSON each, to whoever has started this process."""

    def _tell(self, **said: Any) -> None:
        print(MARK + json.dumps(said), flush=True)

    @contextmanager
    def bar(self, description: str, total: float) -> Iterator[Advance]:
        """Its beginning, then the units."""
        self._tell(bar=description, total=total)
        yield lambda units: self._tell(units=units)

    def say(self, message: str) -> None:
        """One line that stays."""
        self._tell(say=message)


def main() -> None:
    """Do this process' part; rank 0 leaves what all have made."""
    folder, threads, rank = Path(sys.argv[1]), int(sys.argv[2]), int(os.environ["LOCAL_RANK"])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    # ours, written a moment ago by the process that has started this one
    job: Job = torch.load(folder / JOB, map_location="cpu", mmap=True, weights_only=False)
    try:
        fitted = train(job, Told(), rank)
    except UserError as error:
        (folder / f"error-{rank}.json").write_text(json.dumps([error.problem, error.hint]), encoding="utf-8")
        raise
    weights = trained_weights(job.student)
    if rank == 0:
        from safetensors.torch import save_file

        save_file(weights, folder / WEIGHTS)
        (folder / FITTED).write_text(json.dumps(asdict(fitted)), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
