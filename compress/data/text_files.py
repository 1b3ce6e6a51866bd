"""Text out of the user's own files: `data=text data.path=FILE_OR_FOLDER`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from compress.data.corpus import Corpus
from compress.data.readers import data_files, read_documents
from compress.data.split import Splitting
from compress.errors import UserError

logger = logging.getLogger("compress")


@dataclass
class TextFiles(Splitting):
    """A .txt, .jsonl, .json or .parquet file, gzipped or not, or a folder of these.

    A .txt file is one document, a row of the others is one. See `compress.data.split` for how they are split.
    """

    path: str = ""  # file or folder
    field: str = "text"  # name of the field or column that holds the text
    heldout_path: str | None = None  # file or folder to measure on; without it a part of `path` is held out

    def check(self) -> None:
        """Refuse paths that lead nowhere, without reading.

        Raises:
            UserError: no path, or no file of a kind that is read.
        """
        if not self.path:
            raise UserError("data=text needs a file or folder.", "Add data.path=FILE_OR_FOLDER.")
        for path in (self.path, self.heldout_path):
            if path is not None:
                data_files(Path(path).expanduser())

    def load(self) -> Corpus:
        """Read and split the files.

        Raises:
            UserError: no path, or something in the files that is not text (see `compress.data.readers`).
        """
        self.check()
        path = Path(self.path).expanduser()
        logger.info("Reading %s", path)
        documents = read_documents(path, self.field)
        name, origin = path.name or str(path), f"{path}, licence as its owner says"
        measured = None
        if self.heldout_path is not None:
            measured = read_documents(Path(self.heldout_path).expanduser(), self.field)
            origin = f"{origin}; held out: {self.heldout_path}"
        refusal = (
            f"Every document of {path} is held out too, in {self.heldout_path}.",
            "Give two different files, or leave data.heldout_path out.",
        )
        return Corpus(name, *self.in_parts(documents, measured, refusal), origin=origin)
