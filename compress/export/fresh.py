"""An artifact in a fresh process of its runtime, as an object: ask for logits, speed or tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from compress.hardware import HALF, native

RELOAD = Path(__file__).with_name("reload.py")
popen = subprocess.Popen
"""Starts the process. Tests put one here that starts with the libraries imported."""


class ReloadError(Exception):
    """The runtime could not load the artifact, or stopped."""


class FreshProcess:
    """One artifact, loaded by its runtime outside this process.

    Args:
        runtime: as `reload.py` calls it.
        artifact: folder.
        threads: CPU threads.
        longest: tokens of the longest text it will be asked about.

    Raises:
        ReloadError: the runtime cannot load the artifact.
    """

    def __init__(self, runtime: str, artifact: Path, threads: int, longest: int) -> None:
        self._exchange = tempfile.TemporaryDirectory()
        self._errors = (Path(self._exchange.name) / "stderr").open("w+", encoding="utf-8", errors="replace")
        slow = [name for name in HALF if not native(name)]
        self._child = popen(
            [
                *[sys.executable, str(RELOAD), runtime, str(artifact)],
                json.dumps({"threads": threads, "longest": longest, "slow": slow}),
            ],
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
        )
        try:
            self.load_seconds = float(self._reply()["load_seconds"])
        except ReloadError:
            self.close()
            raise

    def logits(self, ids: Tensor) -> Tensor:
        """Logits fp32 [length, vocab] of tokens [length]."""
        from safetensors.torch import load_file

        to = Path(self._exchange.name) / "logits.safetensors"
        self._ask({"do": "logits", "ids": self._given(ids), "to": str(to)})
        return load_file(to)["logits"].clone()  # a mapped file cannot be written again on Windows

    def speed(self, prompt: Tensor, decode: int) -> dict[str, float]:
        """Tokens per second of reading `prompt` [length] and of writing `decode` tokens after it."""
        return self._ask({"do": "speed", "ids": self._given(prompt), "decode": decode})

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """What the runtime's own tokenizer makes of `texts`."""
        found: list[list[int]] = self._ask({"do": "tokens", "texts": texts})["tokens"]
        return found

    def _given(self, ids: Tensor) -> str:
        from safetensors.torch import save_file

        file = Path(self._exchange.name) / "ids.safetensors"
        save_file({"ids": ids.to(torch.int64).contiguous()}, file)
        return str(file)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: the reply below says why
            print(json.dumps(question), file=self._child.stdin, flush=True)
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self._child.wait()
            self._errors.seek(0)
            lines = [text for text in self._errors.read().splitlines() if text.strip()]
            said = [text for text in lines if "error loading" in text] or lines
            raise ReloadError(said[-1] if said else f"it ended with status {self._child.returncode} and no message")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        """End the process."""
        if self._child.stdin is not None:
            self._child.stdin.close()
        try:
            self._child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()
        self._errors.close()
        self._exchange.cleanup()

    def __enter__(self) -> FreshProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
