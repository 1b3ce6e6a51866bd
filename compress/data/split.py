"""Splitting documents into train, calibration and held-out, so that nothing measured was trained on.

Whole documents are assigned at random by seed. Fewer than three documents cannot be: each of them is cut by position
at a paragraph boundary instead, its end held out. Repeated documents are dropped first: a copy of a held-out document
in the training text would be a leak.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from compress.errors import UserError

BOUNDARIES = ("\n\n", "\n", ". ", " ")
"""Where a text may be cut, best first."""

FEWEST_WHOLE = 3


class Split(NamedTuple):
    """Documents of the three splits."""

    train: tuple[str, ...]
    calibration: tuple[str, ...]
    heldout: tuple[str, ...]


def check_fractions(heldout: float | None, calibration: float | None) -> None:
    """Refuse fractions that leave nothing to train on.

    Raises:
        UserError: a fraction outside (0, 0.5), or both together above 0.5.
    """
    for name, value in (("heldout", heldout), ("calibration", calibration)):
        if value is not None and not 0 < value < 0.5:
            raise UserError(
                f"data.{name} is the fraction of the text in that split, between 0 and 0.5; {value} was given.",
                f"For instance data.{name}=0.05.",
            )
    if (heldout or 0) + (calibration or 0) > 0.5:
        raise UserError(
            f"data.heldout={heldout} and data.calibration={calibration} leave less than half of the text to train on.",
            "Lower them, for instance to data.heldout=0.05 data.calibration=0.05.",
        )


USUAL = 0.05
HELDOUT_CHARS, CALIBRATION_CHARS = 12_000, 6_000
"""About three windows to measure on, and half as much to calibrate on."""


def share(fraction: float | None, documents: Sequence[str], characters: int) -> float:
    """`fraction` as given; by default 5%, or what it takes to get `characters` out of a short text, up to a quarter."""
    if fraction is not None:
        return fraction
    return max(USUAL, min(0.25, characters / max(1, sum(map(len, documents)))))


def split_documents(documents: Sequence[str], *, heldout: float, calibration: float, seed: int) -> Split:
    """Split documents at random by seed.

    Args:
        documents: at least one.
        heldout: fraction of the documents (with fewer than three: of the characters) to measure on; at least one.
        calibration: the same for calibration; 0 for none.
        seed: which documents go where.
    """
    documents = list(dict.fromkeys(documents))
    if len(documents) < FEWEST_WHOLE:
        return _split_by_position(documents, heldout, calibration)
    # the longest document always trains: holding out nearly the whole text would serve nobody
    longest = max(range(len(documents)), key=lambda i: len(documents[i]))
    order = [i for i in range(len(documents)) if i != longest]
    random.Random(seed).shuffle(order)
    n_heldout = max(1, round(heldout * len(documents))) if heldout else 0
    n_calibration = max(1, round(calibration * len(documents))) if calibration else 0
    measured = set(order[:n_heldout])
    calibrated = set(order[n_heldout : n_heldout + n_calibration])
    return Split(
        tuple(d for i, d in enumerate(documents) if i not in measured | calibrated),
        tuple(documents[i] for i in sorted(calibrated)),
        tuple(documents[i] for i in sorted(measured)),
    )


@dataclass(kw_only=True)
class Splitting:
    """Settings of texts that are split here, or are measured on other text."""

    heldout: float | None = None  # fraction that is held out; by default 5%, of a short text up to a quarter
    calibration: float | None = None  # fraction that calibrates; by default as for heldout
    seed: int = 0  # which documents those are

    def __post_init__(self) -> None:
        check_fractions(self.heldout, self.calibration)

    def in_parts(self, documents: Sequence[str], measured: Sequence[str] | None, refusal: tuple[str, str]) -> Split:
        """`documents` in three parts, or in two that have nothing of `measured`, which is the third.

        Raises:
            UserError: with the words of `refusal`, if all documents are among the measured ones.
        """
        if measured is None:
            heldout = share(self.heldout, documents, HELDOUT_CHARS)
            rest = documents
        else:
            heldout, known = 0.0, set(measured)
            rest = [document for document in documents if document not in known]
            if not rest:
                raise UserError(*refusal)
        calibration = share(self.calibration, rest, CALIBRATION_CHARS)
        found = split_documents(rest, heldout=heldout, calibration=calibration, seed=self.seed)
        return found if measured is None else found._replace(heldout=tuple(measured))


def _split_by_position(documents: Sequence[str], heldout: float, calibration: float) -> Split:
    train, calibrate, measure = [], [], []
    for document in documents:
        size = len(document)
        # half a split's size: its own is kept between half and twice what was asked for
        end = cut_near(document, round(size * (1 - heldout)), round(size * heldout / 2))
        start = end
        if calibration:
            start = cut_near(document, round(size * (1 - heldout - calibration)), round(size * calibration / 2))
        train.append(document[:start])
        calibrate.append(document[start:end])
        measure.append(document[end:])
    return Split(*(tuple(part for part in parts if part.strip()) for parts in (train, calibrate, measure)))


def cut_near(text: str, position: int, reach: int) -> int:
    """Where to cut `text` at or up to `reach` characters before `position`, best at the end of a paragraph.

    Else of a line, a sentence or a word, else at `position` itself. The boundary stays with what precedes it, so the
    parts joined give the text back.
    """
    for boundary in BOUNDARIES:
        found = text.rfind(boundary, max(0, position - reach), position)
        if found >= 0:
            return found + len(boundary)
    return position
