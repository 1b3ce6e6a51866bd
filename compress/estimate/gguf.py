"""Size of a GGUF file: blocks of 32 weights with an fp16 scale (and minimum), and the tokenizer in the header.

    Q4_0   18 bytes: scale, 16 bytes of codes                  4.5 bits per weight
    Q5_0   22 bytes: scale, 4 bytes of high bits, 16 of low    5.5
    Q5_1   24 bytes: scale, minimum, 4 + 16                    6.0
    Q8_0   34 bytes: scale, 32 codes                           8.5

Source: llama.cpp, ggml/src/ggml-common.h and docs/gguf.md. Vectors are F32; rows that are no multiple of 32 are F16.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.estimate.form import Form
from compress.estimate.layouts import GGUF_BLOCK, GGUF_BLOCK_BYTES

ALIGNMENT = 32
METADATA = 2048
"""Keys and values that are no lists: sizes, names, the chat template's usual length."""


@dataclass(frozen=True)
class Words:
    """What of a tokenizer is in the header."""

    count: int
    text: int
    """Bytes of all tokens."""
    merges: int = 0
    merge_text: int = 0

    @property
    def bytes(self) -> int:
        """Each string with its length (8 bytes), each token with its type (4)."""
        return 12 * self.count + self.text + 8 * self.merges + self.merge_text


def read_words(folder: Path | None, vocab: int) -> Words:
    """From tokenizer.json; without one, a vocabulary of usual tokens (6 bytes, with a merge of 8)."""
    try:
        model: dict[str, Any] = (
            json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"] if folder else {}
        )
        tokens, merges = list(model["vocab"]), model.get("merges", [])
    except (OSError, ValueError, KeyError, TypeError):
        return Words(vocab, 6 * vocab, vocab, 8 * vocab)
    names = [t if isinstance(t, str) else t[0] for t in tokens]
    joined = [m if isinstance(m, str) else " ".join(m) for m in merges]
    return Words(vocab, _text(names), len(joined), _text(joined))


def _text(strings: Iterable[str]) -> int:
    return sum(len(string.encode()) for string in strings)


def tensor_bytes(shape: tuple[int, ...], grid: str) -> int:
    """One tensor, padded to the alignment."""
    count = 1
    for size in shape:
        count *= size
    if len(shape) < 2:
        size = 4 * count
    elif grid in GGUF_BLOCK_BYTES and shape[-1] % GGUF_BLOCK == 0:
        size = count // GGUF_BLOCK * GGUF_BLOCK_BYTES[grid]
    else:
        size = 2 * count
    return -(-size // ALIGNMENT) * ALIGNMENT


def gguf_bytes(form: Form, linears: str, embeddings: str, words: Words) -> int:
    """The whole file: linears on one grid, embedding and head on another."""
    return METADATA + words.bytes + sum(_entries(form, linears, embeddings))


def _entries(form: Form, linears: str, embeddings: str) -> Iterator[int]:
    for p in form.parameters:
        grid = linears if p.role == "linear" else embeddings if p.role in ("embedding", "head") else "F32"
        info = 8 + len(p.name) + 4 + 8 * len(p.shape) + 4 + 8
        yield info + tensor_bytes(p.shape, grid)
