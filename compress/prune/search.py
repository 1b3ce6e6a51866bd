"""A search over shapes: several ways to meet one budget, each compensated and healed briefly; the best one stays.

Which kind of group should bear the removal differs from model to model, and what a shape is worth shows only after some
healing (Minitron, arXiv 2407.14679, section 4: candidates change ranks within about 300 steps). Candidates are judged
by their KL to the original on the last quarter of the calibration text, which nothing is fitted to or measured on.
What comes out is the winner as compensation left it: the stage after this one heals it in full.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from compress.prune.composed import CutAndHeal
from compress.stage import Context, Metrics

if TYPE_CHECKING:
    from compress.arch import Widths
    from compress.checkpoint import Checkpoint
    from compress.errors import UserError


Documents = tuple[str, ...]


def usual_shares() -> dict[str, dict[str, float]]:
    """Name -> what part of the removal each kind bears."""
    return {
        "width": {"mlp": 1.0},
        "depth": {"layers": 1.0},
        "mostly_width": {"layers": 0.22, "mlp": 0.78},
        "half_each": {"layers": 0.5, "mlp": 0.5},
        "residual_too": {"hidden": 0.5, "mlp": 0.5},
    }


JUDGING = 4
"""One document of so many of the calibration text judges the candidates."""


@dataclass
class PruneSearch(CutAndHeal):
    """Tries several shapes of one budget and keeps the one that heals best.

    Each candidate sets the `share` of `prune`, and gets a part of the training before it is judged.
    """

    brief: float = 0.15
    """That part, as a fraction of its tokens."""
    candidates: dict[str, dict[str, float]] = field(default_factory=usual_shares)
    """Name -> what part of the removal each kind bears; `~stages.prune.candidates.NAME` drops one."""
    judge_tokens: int = 8192
    """Tokens candidates are judged on."""

    kind: ClassVar[str] = "prune_search"
    version: ClassVar[int] = 3

    def __post_init__(self) -> None:
        from compress.errors import UserError

        super().__post_init__()
        if not 0 < self.brief <= 1:
            raise UserError(f"brief={self.brief} is a fraction of the training's tokens: above 0 and at most 1.")
        if self.judge_tokens < 1:
            raise UserError(f"judge_tokens={self.judge_tokens} must be at least 1.")
        for share in self.candidates.values():
            replace(self.prune, share=share)  # refuses kinds there are not

    def possible(self, config: Any) -> tuple[dict[str, tuple[Any, Widths]], dict[str, str]]:
        """Candidates that meet the budget with their stage and widths, and why the others do not.

        Two names for one shape are one candidate.
        """
        from compress.errors import UserError

        found: dict[str, tuple[Any, Widths]] = {}
        refused: dict[str, str] = {}
        for name, share in self.candidates.items():
            stage = replace(self.prune, share=share)
            try:
                widths = stage.widths(config)
            except UserError as error:
                refused[name] = error.problem
                continue
            same = next((other for other, (_, known) in found.items() if known == widths), None)
            if same is None:
                found[name] = stage, widths
            else:
                refused[name] = f"the same shape as {same}"
        return found, refused

    def widths(self, config: Any) -> Widths:
        """The first candidate's: before the search nobody knows which one wins."""
        possible, _ = self.possible(config)
        return next(iter(possible.values()))[1]

    def check(self, config: Any) -> None:
        """Refuse a budget that no candidate meets."""
        possible, refused = self.possible(config)
        if not possible:
            raise none_left(refused)

    @staticmethod
    def divide(documents: Documents) -> tuple[Documents, Documents]:
        """The calibration text without its last documents, and these: nothing is fitted on what judges.

        A text of one document is both.
        """
        apart = len(documents) // JUDGING or min(1, len(documents) - 1)
        return (documents[:-apart], documents[-apart:]) if apart else (documents, documents)

    def run(self, checkpoint: Checkpoint, context: Context) -> tuple[Checkpoint, Metrics]:
        """Try them all."""
        from compress.prune.contest import run_search

        return run_search(checkpoint, self, context)


def none_left(refused: dict[str, str]) -> UserError:
    """What to say when no candidate meets the budget; `refused` says of each why."""
    from compress.errors import UserError

    told = "; ".join(f"{name}: {why}" for name, why in refused.items())
    return UserError(f"no candidate meets the budget ({told}).", "Give another keep, or other candidates.")
