"""All artifacts of a run: what cannot be written is known before any work, and what may be left out is, out loud."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import UserError, disk_is_full

if TYPE_CHECKING:
    from compress.checkpoint import Checkpoint
    from compress.evaluate.evaluator import Evaluator
    from compress.export.base import Export
    from compress.stage import Grids, Progress


logger = logging.getLogger("compress")


class Artifacts:
    """The exports of one run.

    Args:
        exports: by name, in order.
        progress: hears what is left out.
    """

    def __init__(self, exports: Mapping[str, Export], progress: Progress) -> None:
        self.exports = exports
        self.progress = progress
        self.left_out: dict[str, str] = {}
        """Optional ones that cannot be written, and why."""
        self.predicted: Mapping[str, float] = {}
        """"artifact NAME" -> seconds."""

    def check_at_once(self, grids: Grids) -> None:
        """Before anything is read.

        Args:
            grids: of the model's weights when the run ends.

        Raises:
            UserError: a package of one that is not optional is missing, or it cannot hold these grids.
        """
        for name, export in self.exports.items():
            with self._optional(name, export):
                export.check_packages()
                export.check_grids(grids)

    def check(self, checkpoint: Checkpoint) -> None:
        """Before any work.

        Args:
            checkpoint: the model the run starts from.

        Raises:
            UserError: one that is not optional cannot be written.
        """
        for name, export in self.exports.items():
            if name in self.left_out:
                continue
            with self._optional(name, export):
                export.check(checkpoint)

    def deliver(self, checkpoint: Checkpoint, folder: Path, evaluator: Evaluator, threads: int) -> list[dict[str, Any]]:
        """Write, reload and measure them, each in `folder/NAME`.

        Returns:
            Their entries in the report. One that could not be written after all is there too, as failed: the stages
            before it were the work.
        """
        from compress.export.deliver import PART, deliver, failed

        artifacts: list[dict[str, Any]] = []
        for name, export in self.exports.items():
            if name in self.left_out:
                continue
            try:
                begin = time.monotonic()
                with self._optional(name, export):
                    delivered = deliver(name, export, checkpoint, folder / name, evaluator, threads)
                    predicted = {"seconds": self.predicted[f"artifact {name}"]}
                    artifacts.append(delivered | {"seconds": time.monotonic() - begin, "predicted": predicted})
            except Exception as error:
                if isinstance(error, (OSError, MemoryError)) or disk_is_full(error):
                    raise
                logger.exception("the artifact %s could not be written", name)
                artifacts.append(failed(name, export, checkpoint, folder / name, error))
            shutil.rmtree(folder / (name + PART), ignore_errors=True)
        return artifacts

    @contextmanager
    def _optional(self, name: str, export: Export) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            if not export.optional:
                raise
            self.left_out[name] = f"{error.problem} {error.hint}".strip()
            self.progress.say(f"LEFT OUT: the artifact {name}: {self.left_out[name]}")
