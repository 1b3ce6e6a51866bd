"""What a pruned model knows of the one it was cut from goes with it, and only that one may use it."""

from __future__ import annotations

from pathlib import Path

import compress
from compress.checkpoint import Checkpoint
from compress.distill.stage import kept_of
from compress.stage import DENSE
from tests.pipelines.helpers import tiny_run


def dense(folder: Path) -> Checkpoint:
    return Checkpoint(folder, frozenset({DENSE}))


def test_the_plan_goes_with_the_artifact(tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    cut = ["stages.prune.keep=null", "stages.prune.layers=0.75", "stages.prune.hidden=0.5"]
    report = compress.run(tiny_run("prune_only", tiny_llama, text_file, tmp_path / "out", *cut))
    student = dense(Path(report["artifacts"][0]["path"]))
    kept = kept_of(student, dense(tiny_llama))
    assert kept is not None
    assert len(kept.layers) == student.config.num_hidden_layers < dense(tiny_llama).config.num_hidden_layers
    assert len(kept.channels) == student.config.hidden_size
    # channels of the model it was cut from are not those of another, not even of itself
    assert kept_of(student, student) is None
