"""Text out of the user's own files: `data=text data.path=FILE_OR_FOLDER`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from compress.data.corpus import Corpus
from compress.data.readers import read_documents
from compress.data.split import CALIBRATION_CHARS, HELDOUT_CHARS, check_fractions, share, split_documents
from compress.errors import UserError

logger = logging.getLogger("compress")


@dataclass
class TextFiles:
    """A .txt, .jsonl, .json or .parquet file, gzipped or not, or a folder of these.

    A .txt file is one document, a row of the others is one. See `compress.data.split` for how they are split.
    """

    path: str = ""  # file or folder
    field: str = "text"  # name of the field or column that holds the text
    heldout_path: str | None = None  # file or folder to measure on; without it a part of `path` is held out
    heldout: float | None = None  # fraction that is held out; by default 5%, of a short text up to a quarter
    calibration: float | None = None  # fraction that calibrates; by default as for heldout
    seed: int = 0  # which documents those are

    def __post_init__(self) -> None:
        check_fractions(self.heldout, self.calibration)

    def load(self) -> Corpus:
        """Read and split the files.

        Raises:
            UserError: no path, or something in the files that is not text (see `compress.data.readers`).
        """
        if not self.path:
            raise UserError("data=text needs a file or folder.", "Add data.path=FILE_OR_FOLDER.")
        path = Path(self.path).expanduser()
        logger.info("Reading %s", path)
        documents = read_documents(path, self.field)
        name, origin = path.name or str(path), f"{path}, licence as its owner says"
        if self.heldout_path is None:
            split = split_documents(
                documents,
                heldout=share(self.heldout, documents, HELDOUT_CHARS),
                calibration=share(self.calibration, documents, CALIBRATION_CHARS),
                seed=self.seed,
            )
            return Corpus(name, *split, origin=origin)
        measured = tuple(read_documents(Path(self.heldout_path).expanduser(), self.field))
        known = set(measured)
        rest = [document for document in documents if document not in known]
        if not rest:
            raise UserError(
                f"Every document of {path} is held out too, in {self.heldout_path}.",
                "Give two different files, or leave data.heldout_path out.",
            )
        split = split_documents(
            rest, heldout=0, calibration=share(self.calibration, rest, CALIBRATION_CHARS), seed=self.seed
        )
        return Corpus(name, split.train, split.calibration, measured, f"{origin}; held out: {self.heldout_path}")
