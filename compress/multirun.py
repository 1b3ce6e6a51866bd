"""A sweep from the command line: what each run of it does, and what is told at its end.

With a parallel launcher every run is a process of its own, maybe on another machine, and all that connects it with the
command that was typed is the folder of the sweep. So each run leaves `run.json` there, when it starts and when it ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback

from compress.command import execute, fresh_folder
from compress.config import Mode
from compress.durable import write_atomically
from compress.hardware import take_gpu
from compress.mistakes import as_user_error, tell
from compress.paths import quoted
from compress.sweep.points import RECORD

AGAIN = "COMPRESS_SWEEP_AGAIN"
"""Set for a command that goes on with a sweep of which a worker was killed."""
TRIES, MOST_AGAIN = 2, 64
"""A run that was killed so often has failed; a sweep is not gone on with more often."""
ONE_BY_ONE = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
BESIDE_EACH_OTHER = ("JoblibLauncher", "LocalLauncher")
"""Launchers that start runs on this machine and share out none of its GPUs; Ray and SLURM do."""


def run_job(composed: Any, hydra_config: Any) -> float | tuple[float, ...] | None:
    """One run of a sweep. A failure is told and kept, never raised: the other runs go on.

    Returns:
        What `sweep.objectives` asks for; None for a run that failed.
    """
    from compress.progress import Terminal
    from compress.report import format as form
    from compress.sweep.settings import check_compares, returned

    number, overrides = hydra_config.job.num, list(hydra_config.overrides.task)
    alone = hydra_config.launcher._target_ == ONE_BY_ONE
    tries = _tried(Path(hydra_config.runtime.output_dir))
    if tries is None:
        return None
    folder = fresh_folder(Path(hydra_config.runtime.output_dir))
    record = {"number": number, "overrides": overrides, "alone": alone, "process": os.getpid()}
    record |= {"tries": tries + 1}
    folder.mkdir(parents=True, exist_ok=True)
    _keep(folder, record | {"state": "running"})
    _share_gpus(composed, hydra_config.launcher._target_, number)
    progress = Terminal(prefix=f"{number}: ", bars=alone)
    progress.title(f"run {number}: {' '.join(overrides)}")
    try:
        if composed.mode is Mode.run:
            check_compares(composed.evaluate.measure)
        report = execute(composed, folder, overrides, progress)
    except Exception as error:
        status = tell(error, folder, f"run {number} failed: ")
        known = as_user_error(error)
        problem = known.problem if known else f"{type(error).__name__}: {error}"
        _keep(folder, record | {"state": "failed", "status": status, "problem": problem})
        return None
    if report.get("mode") == "estimate":
        from compress.estimate.show import show_estimate

        show_estimate(report)
        _keep(folder, record | {"state": "done", "status": 0})
        return None
    if "stages" not in report:
        print(report["message"])
        _keep(folder, record | {"state": "done", "status": report["status"]})
        return None
    refused = [a["name"] for a in report["artifacts"] if form.failed(a)]
    problem = f"not verified: {', '.join(refused)}" if refused else ""
    _keep(folder, record | {"state": "done", "status": 1 if refused else 0, "problem": problem})
    final = report["final"]
    progress.say(f"done: KL {final['kl_to_teacher']:.3f}, {form.size(final['bytes'])}" + f", {problem}" * bool(problem))
    # a search must not go after figures of an artifact that its runtime contradicts
    return None if refused else returned(report, list(composed.sweep.objectives))


def _share_gpus(composed: Any, launcher: str, number: int) -> None:
    """One of this machine's GPUs in turn, where nothing else shares them out and no stage trains on several."""
    if not launcher.endswith(BESIDE_EACH_OTHER):
        return
    # a stage that is taken out, as by the presets of sweeps, is null
    trainings = [composed.train, *(stage.get("train") or {} for stage in composed.stages.values() if stage)]
    if all(int(training.get("devices", 1)) == 1 for training in trainings):
        take_gpu(number)


def _tried(folder: Path) -> int | None:
    """How often a run has been killed, where a sweep goes on after that; None if it has nothing to do any more."""
    file = folder / RECORD
    if AGAIN not in os.environ or not file.is_file():
        return 0
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if record["state"] != "running":
        return None
    tries = int(record.get("tries", 1))
    if tries < TRIES:
        return tries
    _keep(folder, record | {"state": "failed", "status": 1, "problem": KILLED})
    return None


KILLED = "its process was killed, by hand or for want of memory"


def go_on() -> int | None:
    """After a worker was killed, and the launcher has given up: what is left of the sweep, one run at a time.

    Alone in its process, a run that is killed again is known to be the one.

    Returns:
        The exit status; None if it is not to be gone on with.
    """
    started = Watch.sweep
    if started is None or started.searches or AGAIN in os.environ:
        return None
    print("a worker was killed, by hand or for want of memory: the sweep goes on, one run at a time", file=sys.stderr)
    ours = ("hydra.sweep.dir=", "sweep.workers=", "threads=")
    given = [argument for argument in sys.argv[1:] if not argument.startswith(ours)]
    # as many threads as before: what is in the store was computed with these
    given += [f"hydra.sweep.dir={quoted(started.folder)}", "sweep.workers=1", f"threads={started.threads or 'null'}"]
    status = -1
    for _ in range(MOST_AGAIN):
        status = subprocess.call([sys.executable, "-m", "compress", *given], env={**os.environ, AGAIN: "1"})
        if status >= 0:
            return status
    return 1


def _keep(folder: Path, record: dict[str, Any]) -> None:
    write_atomically(folder / RECORD, json.dumps(record, indent=2) + "\n")


def records(folder: Path) -> dict[Path, dict[str, Any]]:
    """What the runs below a folder have left so far."""
    return {file.parent: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.rglob(RECORD))}


@dataclass(frozen=True)
class Started:
    """A sweep that this process has started."""

    folder: Path
    before: dict[Path, dict[str, Any]]
    """What was in its folder already."""
    searches: bool
    """Its sweeper learns from run to run, and goes on from what it has stored."""
    threads: int | None
    """Of each run; None for all."""

    def made(self) -> list[dict[str, Any]]:
        """The records of its own runs, by number."""
        new = [record for folder, record in records(self.folder).items() if self.before.get(folder) != record]
        return sorted(new, key=lambda record: record["number"])


class Watch(Callback):
    """Hydra makes this object itself and calls it where a sweep starts: the only place that says where it writes."""

    sweep: ClassVar[Started | None] = None

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Note the folder, and say how the machine is shared."""
        folder = Path(config.hydra.sweep.dir)
        # Optuna's study lies in it, and is opened before the first run
        folder.mkdir(parents=True, exist_ok=True)
        searches = "storage" in config.hydra.sweeper and config.hydra.sweeper.storage is not None
        Watch.sweep = Started(folder, {} if AGAIN in os.environ else records(folder), searches, config.threads)
        # ray tells its makers about every cluster it starts, unless asked not to
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # and gives way to every other process of the machine: a sweep would stand still beside one that computes
        os.environ.setdefault("RAY_worker_niceness", "0")
        if config.hydra.launcher._target_ == ONE_BY_ONE:
            return
        if config.threads is None:
            said = "each takes all threads; threads=N gives it fewer"
        else:
            said = f"{config.threads} thread(s) each"
        print(f"several runs at a time, {said}; speeds are measured while others compute", file=sys.stderr)


def finish() -> list[int]:
    """Write the page of a sweep that has come to its end, say what failed; the exit status of every run."""
    if Watch.sweep is None:
        return []
    from compress.sweep.write import write_sweep

    runs = Watch.sweep.made()
    for run in runs:
        if run["state"] == "running":
            run |= {"status": 1, "problem": KILLED}
    if any((folder / "report.json").exists() for folder in records(Watch.sweep.folder)):
        print(write_sweep(Watch.sweep.folder))
        if Watch.sweep.searches:
            print(f"The same command with hydra.sweep.dir={Watch.sweep.folder} goes on with this search.")
    bad = [run for run in runs if run["status"]]
    if bad:
        print(f"error: {len(bad)} of {len(runs)} runs failed; what they had finished is kept:", file=sys.stderr)
        for run in bad:
            print(f"  run {run['number']}: {run['problem']}\n    {' '.join(run['overrides'])}", file=sys.stderr)
    return [run["status"] for run in runs]


def nothing_finished() -> bool:
    """Did every run of a sweep fail? Then a sweeper that cannot go on has nothing more to say."""
    runs = Watch.sweep.made() if Watch.sweep else []
    return bool(runs) and all(run["state"] == "failed" for run in runs)
