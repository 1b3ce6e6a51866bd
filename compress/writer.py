"""Tensors one after the other into safetensors files, no more than the tensor at hand in memory.

The header of a safetensors file comes first and is known last. Room for it is kept from the names that are to come;
if it turns out too small, the file is copied once. Tensors are appended to `model-N.part`, those of the file's tail
(`compress.shard`) to `model-N.tail` until the file is whole.

With a journal the files lie in its folder until they are whole, and a line for every finished step says what is in
them. A line is written only after its data is on the disk, so a run that was killed, or whose machine was, finds all
finished steps again and ends in the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from compress.shard import BLOCK, DTYPES, Entry, Shard, append_tail, header_room

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 4 << 30
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def link_or_copy(file: Path, target: Path) -> None:
    """The same content under a second name; on a file system without links a copy."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


class TensorWriter:
    """Writes the safetensors files of a folder, with an index if there are several.

    Attributes:
        done: steps that an interrupted run has finished, with what it noted about them; not to be repeated.
    """

    def __init__(
        self,
        folder: Path,
        names: Iterable[str] = (),
        journal: Path | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """Begin, or go on where the journal ends.

        Args:
            folder: where the files go.
            names: of the tensors that will be added; too few cost a copy, too many some padding.
            journal: folder that survives a kill, for `step`.
            shard_bytes: largest size of a file that holds more than one tensor.
        """
        self.folder = folder
        self.shard_bytes = shard_bytes
        self.done: dict[str, Any] = {}
        self._room = header_room(names)
        self._shards = [Shard(1)]
        self._noted = 0
        self._journal = None if journal is None else journal / "tensors"
        self._work = self._journal or folder
        self._saver = ThreadPoolExecutor(1)
        self._saving: Future[None] | None = None
        if self._journal is not None:
            self._journal.mkdir(parents=True, exist_ok=True)
            self._recall()
        self._open(fresh=not self.done)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor to the disk."""
        import torch

        flat = tensor.detach().cpu().contiguous().reshape(-1)
        dtype = DTYPES[str(tensor.dtype).removeprefix("torch.")]
        entry = Entry(name, dtype, list(tensor.shape), flat.numel() * flat.element_size(), flat.element_size())
        if self._shards[-1].entries and self._shards[-1].size() + entry.size > self.shard_bytes:
            self._finish()
            self._shards.append(Shard(len(self._shards) + 1))
            self._open(fresh=True)
        (self._tail if entry.in_tail else self._part).write(flat.view(torch.uint8).numpy().data)
        self._shards[-1].entries.append(entry)

    def step(self, name: str, facts: Any = None) -> None:
        """Note that everything added so far is right; `facts` is JSON-able and comes back in `done`."""
        if self._journal is None:
            return
        self._wait()
        entries = [(shard.number, entry) for shard in self._shards for entry in shard.entries]
        tensors = [[number, asdict(entry)] for number, entry in entries[self._noted :]]
        self._noted = len(entries)
        self._saving = self._saver.submit(self._save, {"step": name, "facts": facts, "tensors": tensors})

    def close(self) -> None:
        """Give the files their names."""
        self._finish()
        self._saver.shutdown()
        count = len(self._shards)
        weight_map: dict[str, str] = {}
        for shard in self._shards:
            name = SINGLE if count == 1 else f"model-{shard.number:05d}-of-{count:05d}.safetensors"
            self._deliver(self._file(shard, "whole"), self.folder / name)
            weight_map |= {entry.name: name for entry in shard.entries}
        if count > 1:
            total = sum(shard.size() for shard in self._shards)
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _file(self, shard: Shard, form: str) -> Path:
        return self._work / f"model-{shard.number:05d}.{form}"

    def _open(self, fresh: bool) -> None:
        """Open the last shard's files, cut to what its entries say."""
        shard = self._shards[-1]
        sizes = {"part": 8 + self._room + shard.size(in_tail=False), "tail": shard.size(in_tail=True)}
        opened = []
        for form, size in sizes.items():
            file = self._file(shard, form).open("wb" if fresh else "r+b")
            file.truncate(size)
            file.seek(size)
            opened.append(file)
        self._part, self._tail = opened

    def _wait(self) -> None:
        if self._saving is not None:
            self._saving.result()
            self._saving = None

    def _finish(self) -> None:
        """Make a whole safetensors file of the last shard."""
        self._wait()
        shard = self._shards[-1]
        part, tail, whole = (self._file(shard, form) for form in ("part", "tail", "whole"))
        header = shard.header()
        self._tail.close()
        if len(header) <= self._room:
            append_tail(shard, tail, self._part)
            self._part.seek(0)
            self._part.write(self._room.to_bytes(8, "little") + header.ljust(self._room))
            self._close(self._part)
            part.rename(whole)
        else:
            self._part.close()
            with whole.open("wb") as target, part.open("rb") as source:
                target.write(len(header).to_bytes(8, "little") + header)
                source.seek(8 + self._room)
                shutil.copyfileobj(source, target, BLOCK)
                append_tail(shard, tail, target)
                self._close(target)
        if self._journal is None:
            part.unlink(missing_ok=True)
            tail.unlink()

    def _close(self, file: BinaryIO) -> None:
        file.flush()
        if self._journal is not None:
            os.fsync(file.fileno())
        file.close()

    def _deliver(self, file: Path, final: Path) -> None:
        """With a journal the file stays there too: until the result is safe, a kill finds it again."""
        if self._journal is None:
            file.rename(final)
            return
        link_or_copy(file, final)

    def _save(self, line: Mapping[str, Any]) -> None:
        assert self._journal is not None
        for file in (self._part, self._tail):
            file.flush()
            os.fsync(file.fileno())
        with (self._journal / "journal.jsonl").open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(line) + "\n")
            journal.flush()
            os.fsync(journal.fileno())

    def _recall(self) -> None:
        """Take over what an interrupted run has finished, if its files are still there."""
        assert self._journal is not None
        file = self._journal / "journal.jsonl"
        first = {"room": self._room, "shard_bytes": self.shard_bytes}
        lines = _whole_lines(file)
        shards: dict[int, Shard] = {1: Shard(1)}
        for line in lines[1:]:
            for number, entry in line["tensors"]:
                shards.setdefault(number, Shard(number)).entries.append(Entry(**entry))
        listed = list(shards.values())
        if not lines or lines[0] != first or not self._reopened(listed):
            shutil.rmtree(self._journal)
            self._journal.mkdir()
            lines, listed = [first], [Shard(1)]
        # also drops a line that was cut short
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        self.done = {line["step"]: line["facts"] for line in lines[1:]}
        self._shards = listed
        self._noted = sum(len(shard.entries) for shard in listed)

    def _reopened(self, shards: list[Shard]) -> bool:
        """Whether all files are there; the last one is brought back to where tensors can be added."""
        last = shards[-1]
        part, whole = self._file(last, "part"), self._file(last, "whole")
        if not part.exists() and whole.exists():
            whole.rename(part)
        files = [self._file(shard, "whole") for shard in shards[:-1]] + [part, self._file(last, "tail")]
        return all(file.exists() for file in files)


def _whole_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a journal up to one that was cut short."""
    lines: list[dict[str, Any]] = []
    for text in file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
        if not text.endswith("\n"):
            lines.pop()
    return lines
