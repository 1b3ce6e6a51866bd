"""What the stages share that cut, compensate and heal inside: in several steps, or for several candidates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from compress.stage import DENSE, PRUNED, TEACHER, TEXT


@dataclass
class CutAndHeal:
    """Three stages inside one."""

    prune: Any = None
    """The whole cut."""
    compensate: Any = None
    """After every cut; null for none."""
    heal: Any = None
    """Training after the cuts."""

    needs: ClassVar[frozenset[str]] = frozenset({DENSE})
    gives: ClassVar[frozenset[str]] = frozenset({PRUNED})
    takes: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset({TEXT, TEACHER})

    def __post_init__(self) -> None:
        from compress.errors import UserError

        if self.prune is None or self.heal is None:
            raise UserError(
                "this stage needs both `prune` and `heal`.", "Take prune=in_steps or prune=search as they come."
            )

    def check_teacher(self, config: Any, teacher: Any) -> None:
        """As compensation does."""
        if self.compensate is not None:
            self.compensate.check_teacher(config, teacher)

    def healing(self, part: float) -> Any:
        """The training, on a part of its tokens."""
        train = self.heal.train
        return replace(self.heal, train=replace(train, tokens=max(1, round(part * train.tokens))))
