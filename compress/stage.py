"""What every stage is: a dataclass whose fields are its config and whose `run` turns one checkpoint into the next.

A stage states what it needs and what it leaves behind as *traits*, so that an impossible chain is refused before a
byte is loaded. It knows nothing of Hydra, of the store or of the other stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from torch import Tensor

    from compress.checkpoint import Checkpoint
    from compress.data import Corpus
    from compress.store import Store

Metrics = dict[str, Any]
"""JSON-able facts a stage reports about itself: widths, losses, curves."""

Advance = Callable[[float], None]
"""Moves a progress bar on by this many units."""

DENSE = "dense"
QUANTIZED = "quantized"
NF4_WEIGHTS = "nf4"
ADAPTER = "adapter"
PRUNED = "pruned"

TEXT = "text"
TEACHER = "teacher"
DENSE_PARENT = "dense parent"


class Progress(Protocol):
    """Shows how far something long has come."""

    def bar(self, description: str, total: float) -> AbstractContextManager[Advance]:
        """A bar that runs to `total` units; the value of the `with` statement advances it."""
        ...

    def say(self, message: str) -> None:
        """One line that stays on the screen."""
        ...


class Quiet:
    """Progress that shows nothing, for tests and libraries."""

    @contextmanager
    def bar(self, description: str, total: float) -> Iterator[Advance]:
        """Nothing is drawn."""
        del description, total
        yield lambda _: None

    def say(self, message: str) -> None:
        """Nothing is printed."""
        del message


@dataclass(frozen=True)
class Context:
    """What the pipeline gives a stage to work with."""

    folder: Path
    """Empty folder for the result; it becomes visible only once the stage has returned."""
    scratch: Path
    """Folder for progress that survives a kill: the same stage on the same inputs finds it again."""
    original: Checkpoint
    """The model the run started from: the teacher of every training stage."""
    dense: Checkpoint | None
    """The last checkpoint before quantization, if there was one."""
    corpus: Corpus
    own_text: Callable[[], Tensor]
    """Tokens [n, length] that the original has written itself; made once and kept. Empty if none is wanted."""
    fabric: Fabric
    progress: Progress
    seed: int = 0
    store: Store | None = None
    """Where a stage keeps what other stages and runs can use, by content: a teacher's logits, a corrected teacher."""
    logs: Path | None = None
    """Where a training's loggers write."""


class Stage(Protocol):
    """One step of the chain."""

    kind: ClassVar[str]
    version: ClassVar[int]
    """Raised when the same fields would give other weights: part of the key of the result."""
    needs: ClassVar[frozenset[str]]
    gives: ClassVar[frozenset[str]]
    takes: ClassVar[frozenset[str]]
    """Traits that are gone afterwards."""
    reads: ClassVar[frozenset[str]]
    """What it uses besides its checkpoint (TEXT, TEACHER, DENSE_PARENT): part of the key of the result."""

    def run(self, checkpoint: Checkpoint, context: Context) -> tuple[Checkpoint, Metrics]:
        """Write the next checkpoint into `context.folder`."""
        ...


def check_chain(stages: Mapping[str, Stage]) -> None:
    """Refuse a chain in which a stage does not find what it needs.

    Raises:
        UserError: naming the stage, what it needs, and which stage before it took that away.
    """
    from compress.errors import UserError

    traits: set[str] = {DENSE}
    removed: dict[str, str] = {}
    for name, stage in stages.items():
        for trait in sorted(stage.needs - traits):
            cause = f", and stage {removed[trait]!r} before it took that away" if trait in removed else ""
            raise UserError(
                f"stage {name!r} ({stage.kind}) needs a model that is {trait}{cause}.",
                hint_for(name, trait),
            )
        if repeated := (stage.gives & traits) - {PRUNED}:
            raise UserError(
                f"stage {name!r} ({stage.kind}) would make the model {min(repeated)} a second time.",
                f"Drop it with '~stages.{name}'.",
            )
        removed |= dict.fromkeys(stage.takes, name)
        traits = (traits - stage.takes) | stage.gives


@dataclass(frozen=True)
class Grids:
    """What the weights lie on at the end of a chain, by name, DENSE without a grid; several where one will be chosen
    for every tensor, none where it is not known."""

    linears: tuple[str, ...]
    embedding: tuple[str, ...]
    """And of the output head."""
    adapter: bool = False
    """Whether an adapter lies beside them."""


def last_grids(stages: Mapping[str, Any]) -> Grids:
    """Grids of the last stage that quantizes, from its `grid_name` or `candidates`, and its `embedding`."""
    adapter = any(ADAPTER in stage.gives for stage in stages.values())
    last = next((stage for stage in reversed(list(stages.values())) if QUANTIZED in stage.gives), None)
    if last is None:
        return Grids((DENSE,), (DENSE,), adapter)
    candidates, name = tuple(getattr(last, "candidates", ())), getattr(last, "grid_name", None)
    embedding = getattr(last, "embedding", None)
    outer = (embedding,) if embedding else candidates or (DENSE,)
    return Grids(candidates or ((name,) if name else ()), outer, adapter)


def hint_for(name: str, trait: str) -> str:
    """What to type when stage `name` lacks `trait`."""
    if trait == PRUNED:
        return (
            "Put a pruning stage in front of it: +prune@stages.prune=fisher, typed before what adds this one (stages "
            f"run in the order they are typed in). Or drop it with '~stages.{name}'."
        )
    if trait == NF4_WEIGHTS:
        return (
            "Put an NF4 stage whose embedding stays dense in front of it: +quant@stages.quant=nf4, typed before "
            f"what adds this one (stages run in the order they are typed in). Or drop it with '~stages.{name}'."
        )
    return f"Move it in front of quantization, or drop it with '~stages.{name}'."
