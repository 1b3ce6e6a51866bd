"""One safetensors file in the making: what is in it, and where it will lie.

    8 bytes: n | n bytes: header, JSON with the place of every tensor, padded with spaces | the data, without gaps

Data begins at a multiple of 8 bytes, and so must every tensor: one whose size is no multiple of 8 would misalign those
after it, so these lie at the end, the tail, wider types first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

BLOCK = 1 << 22
"""Bytes copied at a time."""
ALIGNMENT = 8
ENTRY_BYTES = 96
"""What a header says of a matrix beside its name, at most."""
DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
"""torch's names of types -> those of the format."""


@dataclass(frozen=True)
class Entry:
    """A tensor that has been written."""

    name: str
    dtype: str
    shape: list[int]
    size: int
    item_size: int

    @property
    def in_tail(self) -> bool:
        """Whether what follows it would be misaligned."""
        return self.size % ALIGNMENT != 0


@dataclass
class Shard:
    """One file in the making."""

    number: int
    entries: list[Entry] = field(default_factory=list)

    def ordered(self) -> list[Entry]:
        """As they will lie in the file."""
        tail = sorted((e for e in self.entries if e.in_tail), key=lambda entry: -entry.item_size)
        return [e for e in self.entries if not e.in_tail] + tail

    def size(self, in_tail: bool | None = None) -> int:
        """Of all tensors, or of those inside or outside the tail."""
        return sum(e.size for e in self.entries if in_tail is None or e.in_tail is in_tail)

    def header(self) -> bytes:
        """Padded to whole 8 bytes."""
        places: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        begin = 0
        for entry in self.ordered():
            end = begin + entry.size
            places[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [begin, end]}
            begin = end
        return _padded(json.dumps(places, separators=(",", ":"), ensure_ascii=False).encode())


def header_room(names: Iterable[str]) -> int:
    """Bytes that a header with these names takes at most, in whole 8 bytes; 0 for no names."""
    needed = sum(len(name.encode()) + ENTRY_BYTES for name in names)
    return len(_padded(b" " * (needed + 64))) if needed else 0


def _padded(header: bytes) -> bytes:
    return header.ljust(-(-len(header) // ALIGNMENT) * ALIGNMENT)


def append_tail(shard: Shard, tail: Path, target: BinaryIO) -> None:
    """Copy the tensors of the file `tail`, which lie there in the order they came in, to the end of `target`."""
    places: dict[str, int] = {}
    begin = 0
    for entry in shard.entries:
        if entry.in_tail:
            places[entry.name] = begin
            begin += entry.size
    with tail.open("rb") as source:
        for entry in shard.ordered():
            if entry.in_tail:
                source.seek(places[entry.name])
                for done in range(0, entry.size, BLOCK):
                    target.write(source.read(min(BLOCK, entry.size - done)))
