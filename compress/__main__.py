"""The command line: `python -m compress`, also installed as `compress`.

Exit status: 0 done, 1 a fault of ours (traceback in the log), 2 a mistake that one message explains.
"""

from __future__ import annotations

import atexit
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from compress.command import execute, fresh_folder
from compress.config import CONF, listing, register
from compress.mistakes import tell
from compress.paths import quoted

USAGE = """compress - a config goes in, a smaller language model comes out, with the proof of what it cost

Type one of these:

{pipelines}

Then change what you like: model=hf model.path=DIR_OR_ID, data=text data.path=FILE, budget=smoke|quick|standard|full,
stages.prune.keep=0.8, and so on. The same command with --help shows every setting of it."""

LEAVES_NOTHING = ("mode=list", "mode=estimate", "mode=preflight", "mode=verify", "mode=sweep_report")


def replace_unknown_letters() -> None:
    """What is printed goes out, into a terminal or file of Windows too that does not know every letter."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def main() -> None:
    """Entry of the command line."""
    arguments = sys.argv[1:]
    if not arguments or arguments == ["mode=list"]:
        print(USAGE.format(pipelines=listing()))
        return
    sweep = bool({"-m", "--multirun"} & set(arguments))
    if sweep and any(argument.startswith("output=") for argument in arguments):
        print("error: output=DIR is the folder of one run, and this is a sweep.", file=sys.stderr)
        print("Give the sweep's folder: hydra.sweep.dir=DIR.", file=sys.stderr)
        sys.exit(2)
    if "output=" in arguments:  # Hydra would write into this very folder
        print("error: output= names no folder.", file=sys.stderr)
        print("Give one, output=DIR, or leave it out.", file=sys.stderr)
        sys.exit(2)
    presets = [argument for argument in arguments if argument.startswith(("+sweep=", "+launch="))]
    if presets and not sweep:
        print(f"error: {' '.join(presets)} is for sweeps, and this is one run.", file=sys.stderr)
        print("Put -m in front of the settings.", file=sys.stderr)
        sys.exit(2)
    sys.argv[1:] = flags_first(arguments)
    # Hydra would print its own half of an error and exit with 1: with this it raises instead
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    replace_unknown_letters()
    # transformers starts threads in tokenizers; a later fork (a fresh process for verification) would warn
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # OpenMP threads that spin at a barrier while their sibling has lost its core cost seconds on a shared machine
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if any(argument in arguments for argument in LEAVES_NOTHING):
        # Hydra would make the folder of the outputs and a log
        log = f"hydra.job_logging.handlers.file.filename={os.devnull}"
        sys.argv += ["hydra.run.dir=.", "hydra.output_subdir=null", log]
        if sweep and not any(argument.startswith("hydra.sweep.dir=") for argument in arguments):
            folder = tempfile.mkdtemp(prefix="compress_sweep_")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            sys.argv.append(f"hydra.sweep.dir={quoted(folder)}")
    register()
    statuses: list[int] = []
    try:
        _hydra_main(statuses)
    except KeyboardInterrupt:
        _finish_sweep()
        print("\ninterrupted: the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # the reader has gone (| head): nothing more to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        from compress.multirun import go_on, nothing_finished

        if type(error).__name__ == "TerminatedWorkerError" and (status := go_on()) is not None:
            sys.exit(status)
        if not nothing_finished():
            statuses.append(tell(error, None))
    sys.exit(max([*statuses, *_finish_sweep()], default=0))


def flags_first(arguments: list[str]) -> list[str]:
    """Flags in front of the settings: argparse, which Hydra reads them with, takes them nowhere else.

    A word that is no setting (KEY=VALUE, ~KEY) is the value of the flag it stands behind.
    """
    flags = [word for word in arguments if word.startswith("-") or not ("=" in word or word.startswith("~"))]
    return [*flags, *(word for word in arguments if word not in flags)]


def _finish_sweep() -> list[int]:
    from compress.multirun import finish

    try:
        return finish()
    except Exception as error:
        return [tell(error, None)]


def _hydra_main(statuses: list[int]) -> None:
    import hydra

    @hydra.main(version_base="1.3", config_path=CONF, config_name="config")
    def task(composed: Any) -> float | tuple[float, ...] | None:
        from hydra.core.hydra_config import HydraConfig

        # with a parallel launcher this is another process
        register()
        hydra_config = HydraConfig.get()
        if hydra_config.mode is not None and hydra_config.mode.name == "MULTIRUN":
            from compress.multirun import run_job

            return run_job(composed, hydra_config)
        folder = fresh_folder(Path(hydra_config.runtime.output_dir))
        try:
            _one(composed, folder, list(hydra_config.overrides.task), statuses)
        except Exception as error:
            statuses.append(tell(error, folder))
        return None

    task()


def _one(composed: Any, folder: Path, overrides: list[str], statuses: list[int]) -> None:
    from compress.progress import Terminal

    report = execute(composed, folder, overrides, Terminal())
    if report.get("mode") == "estimate":
        from compress.estimate.show import show_estimate

        show_estimate(report)
        return
    if "stages" not in report:
        print(report["message"])
        statuses.append(report["status"])
        return
    from compress.report.format import failed
    from compress.report.terminal import show

    show(report)
    if any(map(failed, report["artifacts"])):
        statuses.append(1)


if __name__ == "__main__":
    main()
