"""Pruning in steps, each healed before the next: beyond about 30% removed, one cut takes more than training gives back.

    repeat n times:  cut a part of the way (linear in every width), compensate, heal with 1/n of the tokens

Scores are taken anew from the healed model at every step (Minitron, arXiv 2407.14679, section 4: a third of the
parameters at a time). Compensation always looks at the model the run began with: cuts are composed into one.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from math import gcd
from typing import TYPE_CHECKING, Any, ClassVar

from compress.prune.composed import CutAndHeal
from compress.stage import Context, Metrics

if TYPE_CHECKING:
    from compress.arch import Widths
    from compress.checkpoint import Checkpoint


@dataclass
class PruneInSteps(CutAndHeal):
    """Prunes, compensates and heals in steps; the training's tokens are those of all steps together."""

    steps: int = 2

    kind: ClassVar[str] = "prune_in_steps"
    version: ClassVar[int] = 3

    def __post_init__(self) -> None:
        from compress.errors import UserError

        super().__post_init__()
        if self.steps < 1:
            raise UserError(f"steps={self.steps} must be at least 1.")
        if self.prune.latency is not None:
            raise UserError(
                "latency is measured for one cut, not for steps.", "Give keep or bytes, or use +pipeline=prune_heal."
            )

    def widths(self, config: Any) -> Widths:
        """What the last step leaves."""
        widths: Widths = self.prune.widths(config)
        return widths

    def check(self, config: Any) -> None:
        """Refuse a target that this model cannot meet, in any step, before anything is computed."""
        between(config, self.widths(config), self.steps)

    def run(self, checkpoint: Checkpoint, context: Context) -> tuple[Checkpoint, Metrics]:
        """Cut, compensate, heal; again and again."""
        from compress.prune.run import run_steps

        return run_steps(checkpoint, self, context)


def between(config: Any, goal: Widths, steps: int) -> list[Widths]:
    """Widths after each step, ascending in what is removed; a step that would remove nothing is left out.

    Args:
        config: of the dense model.
        goal: widths after the last step.
        steps: how many.

    Raises:
        UserError: the family's config cannot state widths in between.
    """
    from compress.arch import KINDS, adapter_for
    from compress.errors import UserError

    architecture = adapter_for(config)
    shape = architecture.shape(config)
    full = shape.widths

    def at(step: int, most: int) -> Widths:
        sizes = {}
        for kind in KINDS:
            start, end = full.of(kind), goal.of(kind)
            # as round a number as both ends are, unless that would leave a step without its part
            unit = gcd(start, end, most)
            while unit > 1 and start - end < steps * unit:
                unit //= 2
            sizes[kind] = unit * round((start + (end - start) * step / steps) / unit)
        widths = replace(full, **sizes)
        if shape.hidden_by_heads and goal.hidden < full.hidden:
            unit = widths.all_query_heads
            widths = replace(widths, hidden=unit * round(widths.hidden / unit))
        return widths

    found = [full]
    for step in range(1, steps + 1):
        widths = goal
        if step < steps:
            fine = at(step, 1)
            # the last for a family without a head size of its own, which is as wide as its heads are together
            for widths in (at(step, 64), fine, replace(fine, hidden=fine.heads * shape.head_dim)):
                with suppress(UserError):
                    architecture.check(config, widths)
                    break
            else:
                architecture.check(config, fine)
        if widths != found[-1]:
            found.append(widths)
    return found[1:] or [goal]
