"""`mode=preflight`: the whole chain on a small random twin of the model, so that hour five does not fail on a typo.

The twin has the model's config with two layers (more if a stage asks for cuts that two do not have), its tokenizer, and
narrow random weights. Stages, exports, text and tasks are those of the config; every amount in it (tokens, lengths,
steps, limits) is made small, by its name, so that stages that do not exist yet are made small too. Results go into a
temporary folder that is removed.
"""

from __future__ import annotations

import copy
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress import preparation
from compress.arch import Widths, adapter_for
from compress.checkpoint import sidecars
from compress.errors import UserError
from compress.estimate.fits import check_memory
from compress.estimate.run import run_estimate
from compress.estimate.subject import Subject, subject_of
from compress.paths import cache_folder
from compress.pipeline import Run
from compress.report.format import failed as not_as_computed
from compress.source import HuggingFaceModel
from compress.stage import Advance, Progress, Quiet

if TYPE_CHECKING:
    from compress.config import Config
    from compress.data import Corpus

SMALL: dict[str, int] = {
    "calibration_tokens": 512,
    "probe_tokens": 16,
    "prefill_tokens": 16,
    "decode_tokens": 2,
    "answer_tokens": 4,
    "tokens": 2048,
    "length": 256,
    "window": 64,
    "samples": 4,
    "steps": 2,
    "iterations": 2,
    "epochs": 1,
    "candidates": 2,
    "limit": 2,
}
"""How a field's name ends -> the most it may be; the first that fits counts."""
LESS = {"evaluate": {"tokens": 256}, "own_text": {"length": 64}}
"""Of these parts, since a small model's time is its vocabulary's: what is measured, and written token by token."""
PROMPTS = 1
WIDTH, NEURONS, GROUPS = 512, 1024, 4
"""Of the twin, at most; rounded so that what divides the model's own sizes divides these."""
LAYERS = 2


@dataclass(frozen=True)
class Kept:
    """What of the model the twin has (see `compress.arch.base.Kept`)."""

    layers: tuple[int, ...]
    widths: Widths


@dataclass
class Loaded:
    """A text that is there already."""

    corpus: Corpus

    def load(self) -> Corpus:
        """As it is."""
        return self.corpus


class Following:
    """Progress that remembers where the chain is."""

    def __init__(self, inner: Progress) -> None:
        self.inner = inner
        self.where = ""
        """The stage; none before the first."""

    def bar(self, description: str, total: float) -> AbstractContextManager[Advance]:
        """As the inner one."""
        return self.inner.bar(description, total)

    def say(self, message: str) -> None:
        """Titles name the stage that follows."""
        if message.startswith("--- "):
            self.where = message.removeprefix("--- ")
        self.inner.say(message)


def run_preflight(config: Config, progress: Progress | None = None) -> dict[str, Any]:
    """Run the chain on the twin.

    Returns:
        `message` and `status`, for the command line.

    Raises:
        UserError: naming the stage that failed, and why.
    """
    begin = time.monotonic()
    subject = _checked(config)
    follow = Following(progress or Quiet())
    with tempfile.TemporaryDirectory(prefix="compress-preflight-") as folder:
        root = Path(folder)
        try:
            small = _small(config, subject, root)
            report = Run(small, root / "out", follow, [], root / "cache").execute()
        except Exception as error:
            raise failure(follow.where, error) from error
    failed = [a for a in report["artifacts"] if not_as_computed(a)]
    if failed:
        told = "; ".join(f"{a['name']}: {a['error']}" for a in failed)
        raise UserError(f"preflight: the twin's artifacts are not what the pipeline computed: {told}.", HINT)
    stages, exports = len(report["stages"]), len(report["artifacts"])
    message = (
        f"preflight: {stages} stage{'s' * (stages != 1)} and {exports} export{'s' * (exports != 1)} ran on a small "
        f"twin of {subject.name} in {time.monotonic() - begin:.0f} s; nothing was kept"
    )
    return {"message": message, "status": 0}


HINT = "Change it, or drop the stage with '~stages.NAME' (an export with '~export.NAME'), and run mode=preflight again."


def failure(where: str, error: Exception) -> UserError:
    """What failed, in words; a fault that is not the user's is told with its place in the code."""
    stage = where.partition(" ")[0]
    place = f"preflight: stage {stage!r} fails" if stage else "preflight fails before the first stage"
    if isinstance(error, UserError):
        return UserError(f"{place}: {error.problem}", error.hint or HINT)
    last = traceback.extract_tb(error.__traceback__)[-1]
    said = (str(error).strip().splitlines() or ["no message"])[0]
    line = f"{Path(last.filename).name}, line {last.lineno}"
    return UserError(f"{place}: {type(error).__name__}: {said} ({line}).", HINT)


def _checked(config: Config) -> Subject:
    """Refuse what the model's real sizes refuse, before the twin is made."""
    subject = subject_of(config.model)
    preparation.check_shapes(config.stages, subject.config)
    device = preparation.check_device(config.device.value)
    estimate = run_estimate(config, cache_folder())
    rows = {row["name"]: row for row in estimate["stages"]}
    check_memory(rows, config.stages, device, estimate["measuring"])
    return subject


def _small(config: Config, subject: Subject, root: Path) -> Config:
    """The config with the twin in the place of the model, and little of everything."""
    small = shrunk(replace(config, stages={n: relative(s, subject.config) for n, s in config.stages.items()}))
    config = replace(config, stages=small.stages)
    small.model = HuggingFaceModel(str(make_twin(config, config.model, root / subject.name.rpartition("/")[2])))
    if config.teacher is not None:
        small.teacher = HuggingFaceModel(str(make_twin(config, config.teacher, root / "teacher")))
    small.evaluate.measure = True  # a twin is small
    small.data, small.second = Loaded(config.data.load()), Loaded(config.second.load())
    small.output = str(root / "out")
    return small


def relative(stage: Any, config: Any) -> Any:
    """A stage whose goal in bytes or in time is said as the fraction of the model's parameters that it comes to.

    A small twin is not faster in proportion.
    """
    if getattr(stage, "prune", None) is not None:
        return replace(stage, prune=relative(stage.prune, config))
    if getattr(stage, "bytes", None) is None and getattr(stage, "latency", None) is None:
        return stage
    architecture = adapter_for(config)
    kept = architecture.non_embedding_parameters(config, stage.widths(config))
    return replace(stage, bytes=None, latency=None, keep=kept / architecture.non_embedding_parameters(config))


def shrunk(value: Any) -> Any:
    """A copy of a config, or of any part of one, with every amount at most what `SMALL` says."""
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{f.name: _shrunk_field(f.name, getattr(value, f.name)) for f in fields(value) if f.init}
        )
    if isinstance(value, Mapping):
        return {key: _shrunk_field(str(key), item) for key, item in value.items()}
    return copy.deepcopy(value)


def _shrunk_field(name: str, value: Any) -> Any:
    if name == "prompts":
        return list(value)[:PROMPTS]
    if name == "tasks_limit":
        return SMALL["limit"]
    if name in LESS and is_dataclass(value) and not isinstance(value, type):
        small = shrunk(value)
        return replace(small, **{key: min(getattr(small, key), most) for key, most in LESS[name].items()})
    if isinstance(value, int) and not isinstance(value, bool):
        most = next((most for ending, most in SMALL.items() if name.endswith(ending)), value)
        return min(value, most)
    return shrunk(value)


def make_twin(config: Config, model: Any, folder: Path) -> Path:
    """A checkpoint folder like the model's, small and random. Only its config and tokenizer are read.

    Args:
        config: the run's, for its stages: the twin must have what they cut.
        model: source of the model.
        folder: where to.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from compress.quiet import quiet_transformers

    source = model.fetch_small() if isinstance(model, HuggingFaceModel) else model.resolve().folder
    original = AutoConfig.from_pretrained(source)
    architecture = adapter_for(original)
    if getattr(original, "scale_attn_by_inverse_layer_idx", False):
        original.scale_attn_by_inverse_layer_idx = False  # renumbered layers would compute something else
    kept = next((k for k in _sizes(architecture.shape(original).widths) if _suits(config, original, k)), None)
    twin = original if kept is None else architecture.pruned_config(original, kept)
    dtype = getattr(twin, "dtype", None) or torch.float32
    torch.manual_seed(config.seed)
    with quiet_transformers():
        made = AutoModelForCausalLM.from_config(twin, dtype=dtype)
        made.save_pretrained(folder)
    for file in sidecars(source):
        if file.name != "config.json":
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def _sizes(full: Widths) -> Iterator[Kept]:
    """Twins to try, the smallest first: narrow or as wide as the model, ever deeper."""
    narrow = replace(
        full, mlp=narrowed(full.mlp, NEURONS), heads=min(full.heads, GROUPS), hidden=narrowed(full.hidden, WIDTH)
    )
    deeper = [LAYERS * 2**power for power in range(8) if LAYERS * 2**power < full.layers]
    for layers in dict.fromkeys([min(LAYERS, full.layers), *deeper, full.layers]):
        for widths in (narrow, full):
            yield Kept(tuple(range(layers)), replace(widths, layers=layers))


def narrowed(size: int, most: int) -> int:
    """At most `most`, and divided by the same powers of two (up to 256) as `size`: blocks fit or do not fit alike."""
    step = min(size & -size, 256)
    return size if size <= most or step > most else step * ((most // step - 1) // 2 * 2 + 1)


def _suits(config: Config, original: Any, kept: Kept) -> bool:
    """Whether the family's config can say these sizes and every stage finds what it cuts."""
    try:
        twin = adapter_for(original).pruned_config(original, kept)
        preparation.check_shapes(config.stages, twin)
    except UserError:
        return False
    return True
