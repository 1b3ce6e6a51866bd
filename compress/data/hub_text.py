"""Text out of a Hugging Face dataset: `data=hub data.id=ID data.name=NAME data.split=SPLIT`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from compress.data.corpus import Corpus
from compress.data.readers import checked_text
from compress.data.split import Splitting
from compress.errors import UserError

logger = logging.getLogger("compress")


@dataclass
class HubText(Splitting):
    """One text field of a dataset; a row is a document, blank rows are dropped."""

    id: str = ""  # id of the dataset on the hub, or a local dataset folder
    name: str | None = None  # name of its configuration, if it has several
    split: str = "train"  # its split to train and calibrate on
    field: str = "text"  # name of the column that holds the text
    heldout_split: str | None = None  # its split to measure on; without it a part of `split` is held out

    def load(self) -> Corpus:
        """Download (once) and split the dataset.

        Raises:
            UserError: no id, the dataset or split is not there or cannot be reached, or the field is no text.
        """
        if not self.id:
            raise UserError("data=hub needs a dataset.", "Add data.id=ID, for instance data.id=Salesforce/wikitext.")
        documents = self._documents(self.split)
        origin = f"Hugging Face dataset {self.id}{f' ({self.name})' if self.name else ''}, licence as on its card"
        measured = None if self.heldout_split is None else self._documents(self.heldout_split)
        refusal = (
            f"Every document of split {self.split!r} is held out too, in {self.heldout_split!r}.",
            "Give two different splits, or leave data.heldout_split out.",
        )
        return Corpus(self.id, *self.in_parts(documents, measured, refusal), origin=origin)

    def _documents(self, split: str) -> list[str]:
        rows = self._rows(split)
        if self.field not in rows.column_names:
            raise UserError(
                f"Dataset {self.id} has no column {self.field!r}; its columns are {', '.join(rows.column_names)}.",
                "Name the one with the text: data.field=NAME.",
            )
        values = enumerate(rows[self.field], start=1)
        texts = (checked_text(value, self.field, f"{self.id}, split {split}, row {n}") for n, value in values)
        documents = [text for text in texts if text.strip()]
        if not documents:
            raise UserError(f"Split {split!r} of dataset {self.id} has no text.", "Give another: data.split=SPLIT.")
        return documents

    def _rows(self, split: str) -> Any:
        from datasets import load_dataset

        logger.info("Loading dataset %s, split %s", self.id, split)
        try:
            return load_dataset(self.id, self.name, split=split)
        except (OSError, ValueError, RuntimeError) as error:
            # datasets raises these for: not there, no access, no network, no such configuration or split, broken file
            raise UserError(
                f"Dataset {self.id!r}{f' ({self.name})' if self.name else ''}, split {split!r}, could not be loaded: "
                f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}",
                "Check data.id, data.name and data.split; without a network, give a local folder as data.id or use "
                "data=text data.path=FILE_OR_FOLDER.",
            ) from error
