"""Structured pruning of width and depth, scored on calibration text, in one shot."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Optional

from compress.prune.criteria import Importance, LayerImportance
from compress.stage import DENSE, PRUNED, TEACHER, TEXT, Context, Metrics

if TYPE_CHECKING:
    from compress.arch import Widths
    from compress.checkpoint import Checkpoint
    from compress.prune.target import Count, PruneTarget

KEEP = 0.85
TOLERANCE, LATENCY_TOLERANCE = 0.02, 0.05
"""How far from the fraction asked for the nearest may be."""
FRACTIONS = ("keep", "layers", "mlp", "heads", "query_heads", "hidden")


@dataclass
class Prune:
    """Cuts layers, MLP neurons, KV groups, query heads and residual channels (Minitron, arXiv 2407.14679).

    Fractions are fractions kept. Widths stay uniform over the layers, so that every plain config can say them.
    """

    keep: Optional[float] = KEEP  # noqa: UP045 - OmegaConf reads this annotation on Python 3.10
    """Of the parameters that are not embedding or head; null if the fractions below say it all."""
    bytes: Optional[int] = None  # noqa: UP045
    """Instead of `keep`: the most that the dense checkpoint may take, embeddings included."""
    latency: Optional[float] = None  # noqa: UP045
    """Instead of `keep`: time per decoded token as a fraction of the original's, measured on this machine."""
    layers: Optional[float] = None  # noqa: UP045
    """Fraction of the layers."""
    mlp: Optional[float] = None  # noqa: UP045
    """Fraction of the MLP neurons of each layer."""
    heads: Optional[float] = None  # noqa: UP045
    """Fraction of the KV groups of each layer, with their query heads."""
    query_heads: Optional[float] = None  # noqa: UP045
    """Fraction of the query heads of each KV group, where several share one."""
    hidden: Optional[float] = None  # noqa: UP045
    """Fraction of the residual channels."""
    share: dict[str, float] = field(default_factory=lambda: {"layers": 0.22, "mlp": 0.78})
    """What part of the removal each kind bears, relative to the others, where only `keep` is given."""
    multiple: Optional[int] = None  # noqa: UP045
    """Kept widths are multiples of this; by default of 64, so that 4-bit blocks and matrix tiles fit, or of the next
    smaller power of two that a narrow model can meet the target with."""
    importance: Importance = Importance.activation
    """What neurons, KV groups, query heads and residual channels are scored by."""
    layer_importance: LayerImportance = LayerImportance.block_influence
    """What layers are scored by: how far one turns the stream (block_influence), the best block of neighbours
    (angular), the loss without it, one by one (perplexity), or chance."""
    calibration_tokens: int = 16384
    """Tokens the groups are scored on."""
    removal_tokens: int = 2048
    """Of these, the tokens that layer_importance=perplexity measures every candidate on."""

    kind: ClassVar[str] = "prune"
    version: ClassVar[int] = 5
    needs: ClassVar[frozenset[str]] = frozenset({DENSE})
    gives: ClassVar[frozenset[str]] = frozenset({PRUNED})
    takes: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset({TEXT})

    def __post_init__(self) -> None:
        from compress.errors import UserError

        for name in FRACTIONS:
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UserError(
                    f"stages.prune.{name}={value}: it is the fraction that stays, above 0 and at most 1.",
                    f"To remove 15%, give {name}=0.85.",
                )
        for name in ("calibration_tokens", "removal_tokens", "multiple"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"prune.{name}={value} must be at least 1.")
        self._check_goals()
        self.target()

    def _check_goals(self) -> None:
        """`bytes` and `latency` stand in the place of `keep`: one of the three."""
        from compress.errors import UserError

        if self.bytes is not None and self.bytes < 1:
            raise UserError(f"stages.prune.bytes={self.bytes} is a size in bytes.", "For instance bytes=200000000.")
        if self.latency is not None and not 0 < self.latency <= 1:
            raise UserError(
                f"stages.prune.latency={self.latency} is a fraction of the original's time per token, above 0 and at "
                "most 1.",
                "For a model that is a quarter faster, give latency=0.8.",
            )
        given = {"bytes": self.bytes, "latency": self.latency, "keep": None if self.keep == KEEP else self.keep}
        stated = [f"{name}={value}" for name, value in given.items() if value is not None]
        if len(stated) > 1:
            raise UserError(f"{' and '.join(stated)} are two goals at once.", "Give one of keep, bytes and latency.")

    def target(self, keep: float | None = None) -> PruneTarget:
        """The fields as the planner reads them, with another fraction to keep if one is given."""
        from compress.prune.target import PruneTarget

        fractions = {name: getattr(self, name) for name in FRACTIONS}
        asked = next((f"{n}={getattr(self, n)}" for n in ("bytes", "latency") if getattr(self, n) is not None), None)
        if keep is not None:
            fractions["keep"] = keep
        elif asked is not None:
            fractions["keep"] = KEEP  # until the goal says what it means in parameters
        return PruneTarget(
            **fractions,
            share=self.share,  # type: ignore[arg-type]
            multiple=self.multiple or 64,
            tolerance=LATENCY_TOLERANCE if self.latency is not None else TOLERANCE,
            at_most=self.bytes is not None,
            asked=asked,
        )

    def solved(self, config: Any, keep: float | None, count: Count) -> Widths:
        """Widths that keep a fraction of what is counted.

        Raises:
            UserError: the target cannot be met, or the model's config cannot say it.
        """
        from compress.arch import adapter_for
        from compress.prune.target import solve, solve_coarsest

        architecture = adapter_for(config)
        solver = solve_coarsest if self.multiple is None else solve
        widths = solver(architecture.shape(config), self.target(keep), count)
        architecture.check(config, widths)
        return widths

    def widths(self, config: Any) -> Widths:
        """What this model will be cut to; for a latency, before it is measured, what parameters say.

        Raises:
            UserError: the target cannot be met, or the model's config cannot say it.
        """
        from compress.arch import adapter_for
        from compress.errors import UserError
        from compress.prune.size import dense_bytes, parameters

        if self.bytes is None:
            return self.solved(config, self.latency, lambda widths: parameters(config, widths))
        whole = dense_bytes(config, adapter_for(config).shape(config).widths)
        if self.bytes >= whole:
            raise UserError(
                f"stages.prune.bytes={self.bytes} is no less than the {whole} bytes the model takes: nothing to cut."
            )
        return self.solved(config, self.bytes / whole, lambda widths: dense_bytes(config, widths))

    def check(self, config: Any) -> None:
        """Refuse a target that this model cannot meet, before anything is computed."""
        self.widths(config)

    def run(self, checkpoint: Checkpoint, context: Context) -> tuple[Checkpoint, Metrics]:
        """Score, plan, cut; for a latency, time first."""
        from compress.prune.run import prune, widths_for_latency

        if self.latency is None:
            return prune(checkpoint, self.widths(checkpoint.config), self, context)
        widths, timed = widths_for_latency(checkpoint, self, context)
        pruned, metrics = prune(checkpoint, widths, self, context)
        return pruned, metrics | {"latency": timed}


@dataclass
class Compensate:
    """Makes up for what pruning took, in closed form: least squares on the projections that stay, no training."""

    ridge: float = 0.3
    """Pull towards the weights as they are, relative to the size of the inputs, for a text of 32,768 tokens; the noise
    it holds back falls with the length of the text, and so does it."""
    absorb: float = 0.75
    """Part of the drift of the residual stream that each projection makes up for."""
    read_ridge: float = 0.3
    """The pull on the projections that read the residual stream: few inputs, which need no longer text."""
    calibration_tokens: int = 24576
    """Tokens the projections are fitted on. Of the log-perplexity that an MLP cut of 20% loses, 24,576 win
    back 31% on text of the kind they are taken from, four times as many 39% (SmolLM2-135M); on another kind a fifth."""

    kind: ClassVar[str] = "compensate"
    version: ClassVar[int] = 6
    needs: ClassVar[frozenset[str]] = frozenset({DENSE, PRUNED})
    gives: ClassVar[frozenset[str]] = frozenset()
    takes: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset({TEXT, TEACHER})

    def __post_init__(self) -> None:
        from compress.errors import UserError

        for name in ("ridge", "read_ridge"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"compensate.{name}={getattr(self, name)} must be above zero, and a number.")
        if not 0 <= self.absorb <= 1:
            raise UserError(f"compensate.absorb={self.absorb} is a fraction: from 0 to 1.")
        if self.calibration_tokens < 1:
            raise UserError(f"compensate.calibration_tokens={self.calibration_tokens} must be at least 1.")

    def ridge_for(self, tokens: int) -> float:
        """The pull, for a text of `tokens`."""
        return self.ridge * 32768 / tokens

    def check_teacher(self, config: Any, teacher: Any) -> None:
        """Refuse a teacher whose parts are not those of the model that is cut: targets come from it, part by part."""
        from compress.arch import adapter_for
        from compress.errors import UserError

        own, other = adapter_for(config).shape(config), adapter_for(teacher).shape(teacher)
        if own != replace(other, vocab=own.vocab):  # rows of padding do not count
            raise UserError(
                f"compensation fits the pruned model to the teacher layer by layer, and their shapes differ: {own} and "
                f"{other}.",
                "Drop it: '~stages.compensate'.",
            )

    def run(self, checkpoint: Checkpoint, context: Context) -> tuple[Checkpoint, Metrics]:
        """Solve, layer by layer."""
        from compress.prune.run import refit

        return refit(checkpoint, self, context)
