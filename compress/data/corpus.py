"""A corpus: documents in three splits, and the fingerprint that stands for them in the key of a stage."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Corpus:
    """Documents by what they may be used for. No document is in two splits."""

    name: str
    train: tuple[str, ...]
    calibration: tuple[str, ...]
    heldout: tuple[str, ...]
    origin: str
    """Where the text comes from and its licence, one line for the report."""

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 over the documents, their order and their split; neither name nor origin count."""
        digest = hashlib.sha256()
        for split in (self.train, self.calibration, self.heldout):
            # counts and lengths go in too, so that moving a boundary changes the digest
            digest.update(f"{len(split)}\n".encode())
            for document in split:
                encoded = document.encode()
                digest.update(f"{len(encoded)}\n".encode())
                digest.update(encoded)
        return digest.hexdigest()
