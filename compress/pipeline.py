"""The loop over the stages: check, look up or run, evaluate, deliver, report."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress import preparation
from compress.arch.inventory import total_parameters
from compress.checkpoint import Checkpoint
from compress.config import Config
from compress.errors import UserError, speaking_of
from compress.estimate.fits import check_memory
from compress.estimate.run import predicted
from compress.evaluate.evaluator import SECOND, Evaluator
from compress.evaluate.tasks import check_tasks
from compress.export.artifacts import Artifacts
from compress.keys import Known, known_source, machine_inputs, sidecars_key, stage_fields, stage_inputs
from compress.memory import PeakMemory
from compress.own_text import OwnText
from compress.paths import cache_folder
from compress.stage import DENSE, DENSE_PARENT, TEACHER, TEXT, Context, Progress, Quiet, Stage, last_grids
from compress.store import Store, content_key
from compress.train.strategy import check_trainings
from compress.words import without_padding

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from compress.data import Corpus

log = logging.getLogger("compress")


class Run:
    """One run of one config."""

    def __init__(self, config: Config, output: Path, progress: Progress, overrides: list[str], cache: Path) -> None:
        self.config = config
        self.overrides = overrides
        self.output = output
        self.progress = progress
        self.cache = cache
        self.store = Store(self.cache / "store")
        self.begin = time.monotonic()
        self.rows: list[dict[str, Any]] = []
        self.threads = config.threads or preparation.available_threads()

    def execute(self) -> dict[str, Any]:
        """Everything, in order; returns the report."""
        from compress.export.manifest import write_manifests
        from compress.export.source_file import measured_source_file
        from compress.report.card import write_cards
        from compress.report.write import write_reports

        preparation.check_writable(self.output, "output=DIR")
        preparation.check_writable(self.cache, "COMPRESS_CACHE=DIR in front of the command")
        self._start()
        self.baseline = self.evaluator.quality(self.original.checkpoint, self.original.weights)
        preparation.check_finite(self.baseline, self.original.checkpoint)
        self.baseline |= self.evaluator.behaviour(self.original.checkpoint, self.original.weights)
        self.student = self._student()
        current = dense = self.first
        for name, stage in self.config.stages.items():
            current = self._stage(name, stage, current, dense)
            if DENSE in current.checkpoint.traits:
                dense = current
        self._title("export", "export")
        artifacts = self.exports.deliver(current.checkpoint, self.output / "artifacts", self.evaluator, self.threads)
        source_file = measured_source_file(self.source, self.first.weights, artifacts, self.evaluator, self.threads)
        report = self._report(current, artifacts, source_file)
        try:  # a folder with a report is a finished one, its artifacts whole
            write_cards(report)
            write_manifests([Path(artifact["path"]) for artifact in artifacts])
        finally:
            write_reports(report, self.output, self.config.report)
        return report

    def _start(self) -> None:
        """Load what is asked for, and refuse what cannot work, before anything is computed."""
        config = self.config
        self.device = preparation.check_device(config.device.value)
        self.exports = Artifacts(config.export, self.progress)
        check_at_once(config, self.exports, self.device)
        preparation.say_what_is_emulated(config.stages, self.device, self.progress)
        with self.progress.bar("reading the model (fetched once, then from the cache)", 1) as advance:
            with speaking_of("model", "teacher"):
                teacher = config.teacher and config.teacher.resolve()
            self.source = config.model.resolve()
            advance(1)
        self.first = known_source(self.source.folder, self.source.name, self.store)
        self.original = known_source(teacher.folder, teacher.name, self.store) if teacher else self.first
        preparation.check_teacher(config, self.first.checkpoint, self.original.checkpoint)
        self.original = without_padding(self.original, self.first.checkpoint)
        preparation.check_shapes(config.stages, self.first.checkpoint.config, self.original.checkpoint.config)
        self.exports.check(self.first.checkpoint)
        parameters = total_parameters(self.first.checkpoint.config)
        preparation.check_disk(self.cache, preparation.disk_needed(config.stages, parameters), "COMPRESS_CACHE=DIR")
        preparation.check_disk(self.output, 2 * parameters * max(1, len(config.export)), "output=DIR")
        with self.progress.bar("reading the text (fetched once, then from the cache)", 1) as advance:
            self.corpus: Corpus = config.data.load()
            with speaking_of("data", "second"):
                self.second: Corpus = config.second.load()
            advance(1)
        self.fabric = self._fabric()
        self.run_key = {"seed": config.seed} | machine_inputs(self.device, self.threads)
        self.evaluator = Evaluator(
            settings=config.evaluate,
            original=self.original.checkpoint,
            texts={"": self.corpus, SECOND: self.second},
            inputs={
                **self.run_key,
                "original": self.original.key,
                "texts": [self.corpus.fingerprint, self.second.fingerprint],
            },
            store=self.store,
            progress=self.progress,
            device=self.fabric.device,
        )
        self.evaluator.check_texts()
        preparation.check_text(config.stages, self.corpus, self.original.checkpoint)
        preparation.check_validation(config.stages, self.corpus, self.original.checkpoint, self.evaluator.measured)
        folders = self.first.checkpoint.folder, self.original.checkpoint.folder
        self.own_text = OwnText(self.store, config.own_text, self.original, self.run_key, self.fabric, self.progress)
        self.predicted, self.exports.predicted, memory = predicted(config, folders, self.store, self.own_text.written())
        check_memory(self.predicted, config.stages, self.device, memory)

    def _fabric(self) -> Fabric:
        import torch
        from lightning.fabric import Fabric

        from compress.train.quiet import quiet_lightning

        torch.set_num_threads(self.threads)
        with quiet_lightning():
            fabric = Fabric(accelerator=self.device, devices=1)
            fabric.seed_everything(self.config.seed, verbose=False)
        return fabric

    def _student(self) -> dict[str, Any] | None:
        """The model the run begins with as it is, where everything is compared with another."""
        if self.config.teacher is None:
            return None
        self.progress.say("--- the student, untrained")
        quality = self.evaluator.quality(self.first.checkpoint, self.first.weights + self.first.sidecars)
        self._say_quality(quality, cached=False)
        return quality

    def _stage(self, name: str, stage: Stage, current: Known, dense: Known) -> Known:
        """The result of one stage, from the store or made now; its row goes into the report."""
        reads = {
            TEXT: {"text": self.corpus.fingerprint, "own": self.own_text.inputs},
            TEACHER: self.original.key,
            DENSE_PARENT: dense.key,
        }
        inputs = stage_inputs(stage, current.key, reads, self.run_key)
        key = content_key(inputs)
        self._title(name, stage.kind)
        with self.store.locked(key, lambda: self.progress.say("waits: another run computes this stage now")):
            record = self.store.find(key)
            cached = record is not None
            if record is None:
                record = self._make(name, stage, inputs, current, dense)
        if cached and any(part.train.loggers for _, part in preparation.trainings({name: stage})):
            self.progress.say("trained before: nothing is logged again, and its curve is in the report")
        checkpoint = Checkpoint(self.store.folder(key), frozenset(record["traits"]), self.source.name)
        known = Known(checkpoint, record["weights"], sidecars_key(checkpoint.folder))
        quality = self.evaluator.quality(checkpoint, known.weights + known.sidecars)
        self.rows.append(
            {
                "name": name,
                "kind": stage.kind,
                "key": key,
                "cached": cached,
                "seconds": record["seconds"],
                "peak_rss_bytes": record["peak_rss_bytes"],
                "params": quality["params"],
                "bytes": quality["bytes"],
                "metrics": quality,
                "details": record["metrics"],
                "fields": stage_fields(stage),
                "predicted": record.get("predicted", self.predicted[name]),
            }
        )
        self._say_quality(quality, cached)
        return known

    def _make(self, name: str, stage: Stage, inputs: dict[str, Any], current: Known, dense: Known) -> dict[str, Any]:
        key = content_key(inputs)
        begin = time.monotonic()
        with self.store.writing(key) as folder, PeakMemory() as memory:
            context = Context(
                folder=folder,
                scratch=self.store.scratch(key),
                original=self.original.checkpoint,
                dense=dense.checkpoint if dense is not current else None,
                corpus=self.corpus,
                own_text=self.own_text,
                fabric=self.fabric,
                progress=self.progress,
                seed=self.config.seed,
                store=self.store,
                logs=self.output / "logs" / name,
            )
            result, metrics = stage.run(current.checkpoint, context)
            gc.collect()
            facts = {
                "name": name,
                "kind": stage.kind,
                "inputs": inputs,
                "traits": sorted(result.traits),
                "metrics": metrics,
                "seconds": time.monotonic() - begin,
                "peak_rss_bytes": memory.peak_bytes,
                "predicted": self.predicted[name],
            }
            return self.store.commit(key, folder, facts)

    def _report(
        self, current: Known, artifacts: list[dict[str, Any]], source_file: dict[str, Any] | None
    ) -> dict[str, Any]:
        from compress.report.build import Facts, build_report

        behaviour = self.evaluator.behaviour(current.checkpoint, current.weights + current.sidecars)
        facts = Facts(
            overrides=self.overrides,
            config=self.config,
            source=self.source,
            weights=self.first.weights,
            teacher=None if self.config.teacher is None else self.original.checkpoint.name,
            corpus=self.corpus,
            second=self.second,
            run=self.run_key,
            baseline=self.baseline,
            student=self.student,
            stages=self.rows,
            behaviour=behaviour,
            artifacts=artifacts,
            source_file=source_file,
            left_out=self.exports.left_out,
            output=self.output,
            seconds=time.monotonic() - self.begin,
        )
        return build_report(facts)

    def _title(self, name: str, kind: str) -> None:
        self.progress.say(f"--- {name}" if kind == name else f"--- {name} ({kind})")

    def _say_quality(self, quality: dict[str, Any], cached: bool) -> None:
        from compress.report.format import in_a_line

        self.progress.say(in_a_line(quality) + (", from the store" if cached else ""))


def check_at_once(config: Config, exports: Artifacts, device: str) -> None:
    """What can be known before a byte of the model is read, or fetched.

    Raises:
        UserError: a package, a text or a task is missing, or an export or a training cannot work this way.
    """
    check_trainings(config.stages, device)
    exports.check_at_once(last_grids(config.stages))
    for text, place in ((config.data, "data"), (config.second, "second")):
        if hasattr(text, "check"):
            with speaking_of("data", place):
                text.check()
    check_tasks(config.evaluate.tasks, config.evaluate.tasks_path)


def run(
    config: Config, output: Path, progress: Progress | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Run a built config.

    Args:
        config: from `compress.config.build`.
        output: folder for reports and artifacts.
        progress: shows how far it is; nothing is shown by default.
        overrides: what `config` was composed from: the command that the report gives to make it again.

    Returns:
        The report, as in report.json.

    Raises:
        UserError: a mistake of the user's.
    """
    try:
        return Run(config, output, progress or Quiet(), list(overrides), cache_folder()).execute()
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "out of memory" in str(error):
            raise UserError(
                f"out of memory: {str(error).splitlines()[0]}",
                "Train in smaller pieces (train.accumulate=2, train.length=128), or on a machine with more memory.",
            ) from error
        raise
