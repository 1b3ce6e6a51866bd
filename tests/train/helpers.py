"""A small training: a tiny student, its teacher, windows of very different lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from compress.data.corpus import Corpus
from compress.data.windows import Windows
from compress.losses.logits import Logits
from compress.stage import Advance, Context, Quiet
from compress.train.fit import Fitted, fit
from compress.train.settings import Precision, Training
from tests.models import SENTENCES, tiny, tiny_tokenizer

STEPS = 6
LENGTH = 24


class Killed(Exception):  # noqa: N818 - not an error, an event
    """In the middle of a training."""


class Until(Quiet):
    """Progress that is killed at a step."""

    def __init__(self, step: int) -> None:
        self.left = step

    @contextmanager
    def bar(self, description: str, total: float) -> Iterator[Advance]:
        def advance(units: float) -> None:
            self.left -= int(units)
            if self.left <= 0:
                raise Killed

        yield advance


def context(folder: Path, progress: Any = None) -> Context:
    from lightning.fabric import Fabric

    nothing: Any = None
    original: Any = SimpleNamespace(tokenizer=tiny_tokenizer, config=SimpleNamespace())
    corpus = Corpus("sentences", (), (), SENTENCES * 3, "")
    fabric = Fabric(accelerator="cpu", devices=1)
    return Context(folder, folder, original, None, corpus, nothing, fabric, progress or Quiet(), logs=folder / "logs")


def text() -> Windows:
    """A mean of the parts' means would be another loss."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 300, (4 * STEPS, LENGTH), generator=generator, dtype=torch.int32)
    return Windows(ids, torch.randint(8, LENGTH + 1, (4 * STEPS,), generator=generator, dtype=torch.int32))


def pair() -> tuple[Any, Any]:
    """Student and teacher, tied heads; a part of the student does not train."""
    (_, student), (_, teacher) = (tiny("llama-tied", seed=seed, num_hidden_layers=2) for seed in (1, 0))
    student.get_submodule("model.layers.0.mlp").requires_grad_(False)
    return student, teacher


def weights(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[name] - b[name]).square().sum()) for name in a) ** 0.5


def trained(
    folder: Path, progress: Any = None, prepare: Callable[[Any], None] | None = None, **settings: Any
) -> tuple[Fitted, dict[str, Tensor]]:
    """What training says, and the weights it leaves."""
    folder.mkdir(exist_ok=True)
    student, teacher = pair()
    if prepare is not None:
        prepare(student)
    given: dict[str, Any] = {"batch": 4, "length": LENGTH, "rate": 1e-3, "precision": Precision.fp32}
    given |= {"checkpoint_seconds": 0.0} | settings
    fitted = fit(student, teacher, Logits(), text(), Training(**given), context(folder, progress))
    return fitted, weights(student)
