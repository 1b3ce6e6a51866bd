"""Measures checkpoints against one original, and remembers what it has measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from compress.errors import UserError
from compress.evaluate.settings import Evaluation
from compress.keys import module_version
from compress.store import Store, content_key

if TYPE_CHECKING:
    import torch

    from compress.checkpoint import Checkpoint
    from compress.data import Corpus
    from compress.evaluate.quality import Reference
    from compress.stage import Progress

VERSION = 2
"""Of how figures are made: another one measures anew."""
SECOND = "second_"
"""Prefix of the figures on the text of another kind."""


@dataclass
class Evaluator:
    """All figures of a run come from here.

    Attributes:
        settings: what to measure.
        original: the model everything is compared with.
        texts: prefix of the figures -> corpus whose held-out documents are scored.
        inputs: what besides the checkpoint decides a figure; part of the key it is remembered by.
        store: remembers.
        progress: shows.
        device: where models compute.
    """

    settings: Evaluation
    original: Checkpoint
    texts: Mapping[str, Corpus]
    inputs: Mapping[str, Any]
    store: Store
    progress: Progress
    device: torch.device

    def __post_init__(self) -> None:
        self.inputs = {**self.inputs, "version": VERSION}

    @cached_property
    def tokenizer(self) -> Any:
        """The original's; every checkpoint of the run has the same."""
        return self.original.tokenizer()

    def check_texts(self) -> None:
        """Refuse a text too short to score, before anything is computed."""
        if self.settings.measure:
            self.windows  # noqa: B018 - raises

    @property
    def measured(self) -> int:
        """Tokens of the first text that are scored."""
        return self.windows[""].numel() if self.settings.measure else 0

    @cached_property
    def windows(self) -> dict[str, torch.Tensor]:
        """Prefix -> tokens [n, window]."""
        from compress.data.rows import check_rows
        from compress.data.windows import joined_windows, readable

        window = readable(self.settings.window, self.original.config)
        windows = {}
        for prefix, corpus in self.texts.items():
            documents = corpus.heldout
            if not documents:
                raise UserError(f"{corpus.name} has no held-out text to measure on.", "Give data.heldout_path=FILE.")
            windows[prefix] = joined_windows(
                documents,
                self.tokenizer,
                length=window,
                tokens=max(window, self.settings.tokens),
                setting="evaluate.window",
            )
            check_rows(windows[prefix], self.original)
        return windows

    @cached_property
    def references(self) -> dict[str, Reference]:
        """The original's hidden states on every text."""
        from compress.evaluate.quality import reference

        total = sum(len(windows) for windows in self.windows.values())
        with self.progress.bar("the original on the held-out texts", total) as advance:
            model = self.load(self.original)
            return {prefix: reference(model, windows, advance) for prefix, windows in self.windows.items()}

    def load(self, checkpoint: Checkpoint, plain: bool = False) -> Any:
        """The checkpoint as a model; `plain` without any code of ours, as its users will load it."""
        from compress.runtime.loading import load_original

        return load_original(checkpoint, self.device, plain)

    def load_as(self, checkpoint: Checkpoint, dtype: torch.dtype | None) -> Any:
        """The checkpoint as the pipeline's model, its dense tensors in `dtype`; None: as stored."""
        from compress.runtime.loading import load_model

        return load_model(checkpoint.folder, dtype=dtype, device=self.device)

    def size(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Parameters and bytes."""
        from compress.evaluate.size import measure_size

        return dict(measure_size(checkpoint))

    def quality_of(self, logits: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
        """Perplexity, KL and agreement on every text of whatever turns tokens [n] into logits [n, vocab]."""
        from compress.evaluate.quality import measure_logits

        references = self.references
        figures: dict[str, Any] = {}
        with self.progress.bar("evaluating in the runtime", sum(map(len, self.windows.values()))) as advance:
            for prefix, reference in references.items():
                figures |= measure_logits(logits, reference, advance).as_dict(prefix)
        return figures

    def quality(self, checkpoint: Checkpoint, weights: str, plain: bool = False) -> dict[str, Any]:
        """Perplexity, KL and agreement on every text, and sizes; sizes alone where nothing is measured.

        Args:
            checkpoint: to measure.
            weights: identifies its weights.
            plain: without any code of ours.
        """
        if not self.settings.measure:
            return self.size(checkpoint)

        def compute() -> dict[str, Any]:
            from compress.evaluate.quality import measure, measure_itself

            references = self.references
            total = sum(len(windows) for windows in self.windows.values())
            figures = self.size(checkpoint)
            with self.progress.bar("evaluating", total) as advance:
                if checkpoint is self.original and not plain:
                    found = {p: measure_itself(reference, self.device, advance) for p, reference in references.items()}
                else:
                    model = self.load(checkpoint, plain)
                    found = {p: measure(model, reference, advance) for p, reference in references.items()}
            for prefix, quality in found.items():
                figures |= quality.as_dict(prefix)
            return figures

        asked = {key: getattr(self.settings, key) for key in ("tokens", "window")}
        return self._remembered("quality", {**asked, "weights": weights, "plain": plain}, compute)

    def behaviour(self, checkpoint: Checkpoint, weights: str, plain: bool = False) -> dict[str, Any]:
        """Speed, answers with their repetition rate, and tasks: for the first and the last model of a run."""
        if not self.settings.measure:
            return {"answers": []}

        def compute() -> dict[str, Any]:
            from compress.evaluate.answers import answer, repetition
            from compress.evaluate.speed import measure_speed

            settings = self.settings
            found: dict[str, Any] = {}
            with self.progress.bar("speed, answers and tasks", 2 + bool(tasks)) as advance:
                model = self.load(checkpoint, plain)
                if settings.speed:
                    found["speed"] = measure_speed(model, settings.prefill_tokens, settings.decode_tokens)
                advance(1)
                answers = answer(model, self.tokenizer, list(settings.prompts), settings.answer_tokens)
                found["answers"] = [
                    {"prompt": prompt, "answer": text, "repetition": repetition(text)}
                    for prompt, text in zip(settings.prompts, answers, strict=True)
                ]
                advance(1)
                if tasks:
                    found["tasks"] = self._tasks(model)
                    advance(1)
            return found

        tasks = self.settings.tasks
        without = ("tokens", "window", "measure")
        asked = {key: value for key, value in asdict(self.settings).items() if key not in without}
        if tasks:
            asked["lm_eval"] = module_version("lm_eval")
            if self.settings.tasks_path is not None:
                return compute()  # what its files refer to, and whether that has changed, only lm-eval knows
        return self._remembered("behaviour", {**asked, "weights": weights, "plain": plain}, compute)

    def _tasks(self, model: Any) -> dict[str, dict[str, float]]:
        from compress.evaluate.tasks import run_tasks

        return run_tasks(
            model,
            self.tokenizer,
            list(self.settings.tasks),
            include_path=self.settings.tasks_path,
            limit=self.settings.tasks_limit,
        )

    def _remembered(self, kind: str, asked: Mapping[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        key = content_key({"kind": kind, "asked": asked, "inputs": self.inputs})
        with self.store.locked(key):
            found = self.store.recall("evaluations", key)
            if found is None:
                found = compute()
                self.store.remember("evaluations", key, found)
        return found
