"""Content-addressed store of stage results: computed once, found again by everything that went into them.

A result is written into a temporary folder, synced and renamed, so what is not whole is never visible. `record.json`
in it holds what the key was made of, the sha256 of every file and tensor, and the metrics of the stage.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from compress.checkpoint import tensor_digests, weights_key
from compress.durable import held, sync_folder, sync_tree, write_atomically

RECORD = "record.json"


def content_key(parts: Mapping[str, Any]) -> str:
    """Sha256 over the canonical JSON of `parts`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(file: Path) -> str:
    """Sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def digests(folder: Path) -> dict[str, dict[str, str]]:
    """Sha256 of every file below `folder`, by its path in it (`files`), and of every tensor (`tensors`)."""
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tensors = pool.submit(tensor_digests, folder)
        names = [str(file.relative_to(folder)) for file in found]
        files = dict(zip(names, pool.map(file_digest, found), strict=True))
        return {"files": files, "tensors": tensors.result()}


class Store:
    """Folder of results by key."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, key: str) -> Path:
        """Where the result of `key` lies, or would."""
        return self.root / "results" / key

    def scratch(self, key: str) -> Path:
        """Where the progress of an unfinished `key` lies."""
        folder = self.root / "progress" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def find(self, key: str) -> dict[str, Any] | None:
        """The record of a whole result, or None. A damaged result is thrown away."""
        folder = self.folder(key)
        try:
            record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return None
        for name, digest in record["files"].items():
            file = folder / name
            if not file.is_file() or file_digest(file) != digest:
                shutil.rmtree(folder)
                return None
        return record

    @contextmanager
    def locked(self, key: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold `key` against other processes, so that parallel runs compute a shared prefix once.

        Args:
            key: of what is about to be computed.
            waiting: called once if another process holds it.
        """
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        file = locks / f"{key}.lock"
        with ExitStack() as stack:
            try:
                stack.enter_context(held(file, timeout=0.2))
            except TimeoutError:
                waiting()
                stack.enter_context(held(file))
            yield

    @contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        """An empty folder for the result of `key`; `commit` makes it visible, an exception removes it."""
        folder = self.root / "unfinished" / f"{key}-{os.getpid()}"
        self._sweep(key)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _sweep(self, key: str) -> None:
        # the lock on the key is held: what lies here under it was left by a killed process
        for left in (self.root / "unfinished").glob(f"{key}-*"):
            shutil.rmtree(left, ignore_errors=True)

    def commit(self, key: str, folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Sync `folder`, write its record and rename it into place; the progress of `key` is dropped.

        Args:
            key: content key.
            folder: from `writing`.
            facts: JSON-able things to keep in the record.

        Returns:
            The record: `facts` with `key`, `files`, `tensors` and `weights`.
        """
        found = digests(folder)
        record = {**facts, "key": key, **found, "weights": weights_key(found["tensors"])}
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        sync_tree(folder)
        final = self.folder(key)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            shutil.rmtree(final)
        folder.rename(final)
        sync_folder(final.parent)
        shutil.rmtree(self.root / "progress" / key, ignore_errors=True)
        return record

    def recall(self, kind: str, key: str) -> dict[str, Any] | None:
        """A small JSON value kept under `key`: evaluations and the like."""
        try:
            value: dict[str, Any] = json.loads((self.root / kind / f"{key}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return value

    def remember(self, kind: str, key: str, value: Mapping[str, Any]) -> None:
        """Keep a small JSON value under `key`."""
        file = self.root / kind / f"{key}.json"
        write_atomically(file, json.dumps(value))
