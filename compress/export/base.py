"""What every format is: a dataclass whose fields are its config, that writes an artifact and says what it must answer.

Nothing heavy is imported here: the config imports this before torch.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Optional

from compress.errors import UserError
from compress.stage import DENSE

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from compress.checkpoint import Checkpoint
    from compress.stage import Grids

    Load = Callable[[Checkpoint, torch.dtype | None], Any]
    """A checkpoint as the pipeline's model, in the type asked for; None: as stored."""

SAME_FP32 = 1e-4
"""Largest mean KL, in nats, where the runtime computes in fp32 from the same weights."""
SAME_BF16 = 5e-3
"""Where it computes in bf16 or on NF4."""
SAME_SCHEME = 1e-2
"""From an emulation in torch of the same scheme, where the runtime rounds activations itself."""


@dataclass(frozen=True)
class Expectation:
    """What an artifact must answer: logits [positions, vocab]."""

    pipeline: Tensor
    """Of the pipeline's model."""
    tolerance: float
    """Largest mean KL: to `emulated` where there is one, else to `pipeline`."""
    emulated: Tensor | None = None
    """Of a torch model that rounds activations the way the runtime does."""
    scheme: str = ""
    """What is emulated, in words."""


def with_noise(scheme: str, apart: float) -> str:
    """`scheme`, and where that comes near the tolerance, how far two exact computations of it are apart.

    It is no reason to pass, but one that the reader of a failure should know.

    Args:
        scheme: what is emulated, in words.
        apart: mean KL in nats.
    """
    if 2 * apart <= SAME_SCHEME:
        return scheme
    return f"{scheme}; two such computations that differ in last bits alone are {apart:.1e} apart on this model"


@dataclass
class Export(ABC):
    """A format. Its artifact is a folder."""

    max_kl: Optional[float] = None  # noqa: UP045 - OmegaConf reads this annotation on Python 3.10
    """Largest mean KL of the reload, in nats. By default 1e-4 where the runtime computes in fp32 from the same weights,
    5e-3 in bf16 or NF4, 1e-2 from an emulation of the same scheme where the runtime rounds activations itself."""
    probe_tokens: int = 256
    """Tokens of held-out text both are compared on."""
    optional: bool = False
    """Left out, saying so, where its packages are missing or the model cannot be said in it; else the run stops."""

    format: ClassVar[str]
    usage: ClassVar[str]
    """Code that loads the artifact."""
    plain_transformers: ClassVar[bool] = False
    """Whether it is measured in this process, like the stages; else all figures are those of its runtime. (A
    compressed-tensors model decodes itself when the whole model is called, which the stages' measure does not do.)"""
    own_tokenizer: ClassVar[bool] = False
    """Whether the runtime cuts texts into tokens by itself."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Modules that writing and reloading import."""
    seconds_a_layer: ClassVar[float] = 0.0
    """That tracing one layer of a small model takes on two cores, where the format is a traced program."""
    install: ClassVar[str] = ""
    """What to type when one is missing."""

    def __post_init__(self) -> None:
        if self.max_kl is not None and not self.max_kl > 0:
            raise UserError(f"export.max_kl={self.max_kl} must be above zero.")
        if self.probe_tokens < 2:
            raise UserError(f"export.probe_tokens={self.probe_tokens} must be at least 2.")

    @property
    def positions(self) -> int | None:
        """Tokens the artifact can hold at a time, where that is fixed when it is written."""
        return None

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse, before any work, what cannot come out well.

        Args:
            checkpoint: the model the run starts from.

        Raises:
            UserError: the format cannot say what the model is.
        """
        del checkpoint

    def check_packages(self) -> None:
        """Refuse to begin without what writing and reloading import.

        Raises:
            UserError: a package is missing.
        """
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f"the export {self.format} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} "
                "not installed: writing and reloading it takes them.",
                f"Type: {self.install}. Or leave the export out: '~export.NAME'.",
            )

    def check_grids(self, grids: Grids) -> None:
        """Refuse, before any work, grids that this format can only say by rounding a second time.

        Args:
            grids: of the weights at the end of the chain.

        Raises:
            UserError: with what to type instead.
        """
        del grids

    def check_codes(self, part: str, grids: Sequence[str], kept: Collection[str], asked: str, hint: str) -> None:
        """Refuse the first of `grids` whose codes cannot be `kept`.

        Args:
            part: of the model, in words.
            grids: that it lies on, or may.
            kept: grids whose codes are written unchanged; dense weights always can be rounded.
            asked: the setting that would round them.
            hint: what to type instead.

        Raises:
            UserError: there is one.
        """
        lies = "lies" if len(grids) == 1 else "may lie"
        for grid in grids:
            if grid != DENSE and grid not in kept:
                raise UserError(
                    f"the export {self.format} would round twice: {part} {lies} on the grid {grid}, and {asked}.", hint
                )

    @abstractmethod
    def runtime(self, checkpoint: Checkpoint) -> str:
        """What reloads it, as `reload.py` calls it; also the name of its module."""

    def how_to_load(self, checkpoint: Checkpoint) -> str:
        """Code that loads the artifact; without anything of ours wherever a format allows it."""
        del checkpoint
        return self.usage

    @abstractmethod
    def write(self, checkpoint: Checkpoint, folder: Path) -> None:
        """Write the artifact's files into a new folder."""

    @abstractmethod
    def weight_files(self, folder: Path) -> list[Path]:
        """The files of an artifact that hold weights: what it weighs."""

    @abstractmethod
    def expect(self, checkpoint: Checkpoint, ids: Tensor, load: Load) -> Expectation:
        """What the artifact must answer to `ids` [1, length]."""

    def within(self, default: float) -> float:
        """The tolerance: the one asked for, or the default."""
        return default if self.max_kl is None else self.max_kl
