"""Runs on tiny models: small enough for seconds, real in every stage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

FAST = (
    "evaluate.tokens=512",
    "evaluate.window=64",
    "evaluate.answer_tokens=4",
    "evaluate.prefill_tokens=16",
    "evaluate.decode_tokens=2",
    "train.tokens=2000",
    "train.length=64",
    "own_text.tokens=512",
    "own_text.length=64",
    "threads=1",
)
CALIBRATED = {
    "fisher": ("calibration_tokens",),
    "fisher_long": ("calibration_tokens",),
    "compensate": ("calibration_tokens",),
    "compensate_long": ("calibration_tokens",),
    "in_steps": ("prune.calibration_tokens", "compensate.calibration_tokens"),
    "search": ("prune.calibration_tokens", "compensate.calibration_tokens"),
}
"""Presets of conf/prune whose text is longer than a tiny model needs, by the fields that say how long."""
TOKENS = 3072
PIPELINES = Path(__file__).parents[2] / "conf" / "pipeline"


@cache
def calibrated(pipeline: str) -> tuple[tuple[str, str, str], ...]:
    """(stage, what would put another in its place, override) for every calibration of a preset."""
    file = PIPELINES / f"{pipeline}.yaml"
    stages = re.findall(r"/prune@(stages\.\w+): (\w+)", file.read_text()) if file.is_file() else []
    return tuple(
        (stage, f"prune@{stage}=", f"{stage}.{field}={TOKENS}")
        for stage, preset in stages
        for field in CALIBRATED.get(preset, ())
    )


def calibrated_briefly(pipeline: str, more: Sequence[str]) -> list[str]:
    """Overrides for calibrations of `pipeline` on a tiny model: of the stages that `more` leaves as they are."""
    return [
        override
        for stage, replaced, override in calibrated(pipeline)
        if not any(given.startswith((f"~{stage}", replaced)) for given in more)
    ]


def tiny_run(pipeline: str, model: Path, text: Path, output: Path, *more: str) -> list[str]:
    """Overrides for a run of `pipeline` on a tiny model and text."""
    named = [f"model.path={model}", f"data.path={text}", f"output={output}"]
    short = calibrated_briefly(pipeline, more)
    return [f"+pipeline={pipeline}", "model=hf", "data=text", *named, *FAST, *short, *more]
