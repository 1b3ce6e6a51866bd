"""Stages inside a stage: each leaves its result in the scratch folder, so that a killed run goes on where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from compress.checkpoint import Checkpoint
from compress.durable import sync_folder, sync_tree
from compress.stage import Context, Metrics

DONE = "done.json"
Work = Callable[[Checkpoint, Context], tuple[Checkpoint, Metrics]]


def run_inside(
    name: str, work: Work, checkpoint: Checkpoint, context: Context, seed: int
) -> tuple[Checkpoint, Metrics]:
    """Do a part of a stage's work, or find it done.

    Args:
        name: of the part; its result lies in a folder of that name in the stage's scratch.
        work: (checkpoint, context) -> (checkpoint, metrics), as `Stage.run`.
        checkpoint: what it works on.
        context: of the stage around it.
        seed: of this part: parts that train do not all see the same text.
    """
    folder, record = context.scratch / name, context.scratch / name / DONE
    if record.is_file():
        known = json.loads(record.read_text(encoding="utf-8"))
        return Checkpoint(folder, frozenset(known["traits"]), checkpoint.name), known["metrics"]
    unfinished, scratch = context.scratch / f"{name}.unfinished", context.scratch / f"{name}.progress"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    scratch.mkdir(exist_ok=True)
    logs = None if context.logs is None else context.logs / name
    result, metrics = work(checkpoint, replace(context, folder=unfinished, scratch=scratch, seed=seed, logs=logs))
    (unfinished / DONE).write_text(json.dumps({"traits": sorted(result.traits), "metrics": metrics}), encoding="utf-8")
    sync_tree(unfinished)
    unfinished.rename(folder)
    sync_folder(context.scratch)
    shutil.rmtree(scratch)
    return Checkpoint(folder, result.traits, checkpoint.name), metrics


def hand_over(checkpoint: Checkpoint, context: Context) -> Checkpoint:
    """Copy a part's result into the folder of the stage's."""
    for file in sorted(checkpoint.folder.iterdir()):
        if file.name != DONE:
            shutil.copyfile(file, context.folder / file.name)
    return Checkpoint(context.folder, checkpoint.traits, checkpoint.name)


def drop_weights(folder: Path) -> None:
    """Make room: of a part that is needed no more the record alone stays."""
    for file in folder.glob("*.safetensors"):
        file.unlink()
