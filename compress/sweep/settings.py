"""What a run of a sweep is judged by, and how many run at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from compress.errors import UserError


@dataclass(frozen=True)
class Objective:
    """A figure of the report that can be searched for."""

    path: tuple[str, ...]
    """Where it is in report.json."""
    better: str = "minimize"
    """Which way is better, in Optuna's words."""


OBJECTIVES = {
    "kl_to_teacher": Objective(("final", "kl_to_teacher")),
    "second_kl_to_teacher": Objective(("final", "second_kl_to_teacher")),
    "ppl": Objective(("final", "ppl")),
    "top1_agreement": Objective(("final", "top1_agreement"), "maximize"),
    "bytes": Objective(("final", "bytes")),
    "params": Objective(("final", "params")),
    "prefill": Objective(("final", "speed", "prefill_tokens_per_second"), "maximize"),
    "decode": Objective(("final", "speed", "decode_tokens_per_second"), "maximize"),
}
"""Name in `sweep.objectives` -> figure."""


@dataclass
class Sweep:
    """Several runs with one command: -m, +sweep=NAME, +launch=NAME."""

    objectives: list[str] = field(default_factory=lambda: ["kl_to_teacher"])
    """What each run returns to the sweeper; several for +sweep=optuna."""
    workers: int = 2
    """Runs at a time with +launch=...; the threads of this machine are divided among them."""
    folder: Optional[str] = None  # noqa: UP045 - OmegaConf reads this annotation on Python 3.10
    """With mode=sweep_report: the folder of finished runs."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.objectives if name not in OBJECTIVES]
        if unknown or not self.objectives:
            raise UserError(
                f"sweep.objectives=[{','.join(self.objectives)}] names nothing that is measured"
                + (f": {', '.join(unknown)}." if unknown else "."),
                f"Give one or several of: {', '.join(OBJECTIVES)}.",
            )
        if self.workers < 1:
            raise UserError(f"sweep.workers={self.workers} must be at least 1.")

    def check_measured(self, speed: bool) -> None:
        """Refuse to search for a speed that is not measured.

        Raises:
            UserError: a speed is an objective and `evaluate.speed` is off.
        """
        speeds = [name for name in self.objectives if "speed" in OBJECTIVES[name].path]
        if speeds and not speed:
            raise UserError(
                f"sweep.objectives asks for {speeds[0]}, but evaluate.speed=false leaves it unmeasured.",
                "Drop evaluate.speed=false, or choose other objectives.",
            )


def check_compares(measure: bool) -> None:
    """Refuse a sweep of which no run knows what it cost.

    Args:
        measure: `evaluate.measure`.

    Raises:
        UserError: it is off.
    """
    if not measure:
        raise UserError(
            "a sweep compares what its runs cost in quality, and evaluate.measure=false leaves that unmeasured.",
            "Drop it, or start the runs one by one, without -m.",
        )


def directions(names: Sequence[str]) -> list[str]:
    """Which way each objective is better; a name that does not exist is refused when a run is built."""
    return [OBJECTIVES[name].better if name in OBJECTIVES else "minimize" for name in names]


def returned(report: Mapping[str, Any], names: Sequence[str]) -> float | tuple[float, ...] | None:
    """What a run tells its sweeper: a number, several in their order, or None if one is not finite."""
    values = []
    for name in names:
        found: Any = report
        for key in OBJECTIVES[name].path:
            found = found[key]
        values.append(float(found))
    if not all(map(math.isfinite, values)):
        return None
    return values[0] if len(values) == 1 else tuple(values)
