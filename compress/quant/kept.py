"""The calibrated start of a training, kept in its scratch folder: a killed run goes on training at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from compress.durable import sync_file
from compress.grids import Grid, Scales
from compress.quant.run import Start
from compress.store import file_digest

NAME = "start-"


def kept_start(scratch: Path, grids: Mapping[str, Grid], make: Callable[[], Start]) -> Start:
    """The start that was kept in `scratch`, or the one that `make` gives, kept now.

    The file's name holds its hash: one that is not whole is not read.

    Args:
        scratch: of the stage; the same settings find it again.
        grids: module path -> grid, as `make` uses them.
        make: calibrates.
    """
    for file in scratch.glob(f"{NAME}*.pt"):
        if file_digest(file) == file.stem.removeprefix(NAME):
            found = torch.load(file, weights_only=True)
            scales = {path: Scales(*parts) for path, parts in found["scales"].items()}
            own = {path: grids[path] for path in found["levels"]}
            kept = (found[part] for part in ("goals", "plain", "folded", "weight_errors", "details", "input_ranges"))
            return Start(own, found["levels"], scales, *kept)
    start = make()
    part = scratch / "start.part"
    torch.save(
        {
            "levels": start.levels,
            "scales": {path: (s.scale, s.offset, dict(s.stored)) for path, s in start.scales.items()},
            "goals": start.goals,
            "plain": start.plain,
            "folded": {name: tensor.cpu() for name, tensor in start.folded.items()},
            "weight_errors": start.weight_errors,
            "details": start.details,
            "input_ranges": start.input_ranges,
        },
        part,
    )
    sync_file(part)
    part.replace(scratch / f"{NAME}{file_digest(part)}.pt")
    return start
