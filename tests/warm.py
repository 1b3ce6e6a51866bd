"""Processes that start with the libraries imported already: forked from a server that holds nothing else.

Most of what a fresh process of a runtime costs is importing torch and transformers, eight seconds of processor time on
a slow machine, hundreds of times in a test run. What a runtime does with an artifact is the same; that it also does so
as users start it is shown by the tests that ask for `cold_processes`.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import IO, cast

# nothing of this project: what reloads an artifact must not need it
LIBRARIES = (
    *("torch", "transformers", "transformers.models.llama.modeling_llama", "bitsandbytes", "safetensors.torch", "peft"),
    *("transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto", "accelerate"),
)
# where its socket lies, while temporary folders are the system's: a test's own have names too long for one
multiprocessing.util.get_temp_dir()
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(list(LIBRARIES))


class Warm:
    """As much of `subprocess.Popen` as is used here, for `python SCRIPT ARGUMENTS`."""

    def __init__(self, script: str, arguments: Sequence[str], env: Mapping[str, str], errors: str) -> None:
        their_input, our_input = context.Pipe(duplex=False)
        our_output, their_output = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_serve, args=(script, list(arguments), dict(env), (their_input, their_output), errors), daemon=True
        )
        self._process.start()
        for end in (their_input, their_output):
            end.close()
        self.stdin = _file(our_input, "w")
        self.stdout = _file(our_output, "r")

    @property
    def returncode(self) -> int | None:
        """Of the process that ended."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Until it has ended."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a warm process", timeout or 0.0)
        return self._process.exitcode

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()


def popen(command: Sequence[str], *, env: Mapping[str, str], stderr: IO[str], **_: object) -> subprocess.Popen[str]:
    """In place of `subprocess.Popen([PYTHON, SCRIPT, *ARGUMENTS], ...)` with pipes of text."""
    python, script, *arguments = command
    assert python == sys.executable
    return cast("subprocess.Popen[str]", Warm(script, arguments, env, stderr.name))


def _file(end: Connection, mode: str) -> IO[str]:
    """The pipe as a file of text."""
    copied = os.dup(end.fileno())
    end.close()
    return os.fdopen(copied, mode)


def _serve(
    script: str, arguments: list[str], env: dict[str, str], pipes: tuple[Connection, Connection], errors: str
) -> None:
    """Run the script as it would run alone."""
    os.dup2(pipes[0].fileno(), 0)
    os.dup2(pipes[1].fileno(), 1)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_APPEND), 2)
    for end in pipes:
        end.close()
    os.environ.clear()
    os.environ.update(env)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0, "r"), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    sys.argv = [script, *arguments]
    # the project is found by compress.load only where it is installed, as users have it
    runpy.run_path(script, run_name="__main__")
