"""How much of the damage of one stage those after it took away, in KL to the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PRUNES = frozenset({"prune", "prune_search", "prune_in_steps"})
HEALS = {"compensate": PRUNES, "distill": PRUNES, "qlora": frozenset({"nf4", "grid", "qat"})}
"""Kind of a healing stage -> kinds of the stages whose damage it heals."""
STUDENT = "the student"
"""What stands for the model a run began with, where that is not the original: it has its distance to it already."""
KL = "kl_to_teacher"
TEXTS = {"": "held-out", "second_": "other text"}


def won_back(
    baseline: Mapping[str, Any], stages: Sequence[Mapping[str, Any]], student: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """For every healing stage behind one it heals, and for each text:

        fraction        (damaged - healed) / (damaged - before): of the KL the damage added, all that is gone by now
        fraction_alone  (left - healed) / (left - before): of what the stage itself was given to heal

    They differ where two stages heal the same damage, as compensation and distillation do after pruning.

    Args:
        baseline: figures of the original (its KL to itself is zero).
        stages: rows of the report, in order.
        student: figures of the model the run began with, where that is not the original: distilling heals its distance
            as it heals the damage of pruning.

    Returns:
        One entry per healing stage and text, with the KLs the fractions are made of.
    """
    if KL not in baseline:
        return []
    if student is not None:
        stages = [{"name": STUDENT, "kind": "prune", "metrics": student}, *stages]
    found = []
    for index, stage in enumerate(stages):
        harmed = _harmed(stages, index)
        if harmed is None:
            continue
        rows = (stages[harmed - 1]["metrics"] if harmed else baseline, stages[harmed]["metrics"])
        for prefix, text in TEXTS.items():
            before, damaged = (row[prefix + KL] for row in rows)
            left, healed = stages[index - 1]["metrics"][prefix + KL], stage["metrics"][prefix + KL]
            found.append(
                {
                    "stage": stage["name"],
                    "of": stages[harmed]["name"],
                    "text": text,
                    "kl_before": before,
                    "kl_damaged": damaged,
                    "kl_left": left,
                    "kl_healed": healed,
                    "fraction": _fraction(before, damaged, healed),
                    "fraction_alone": _fraction(before, left, healed),
                }
            )
    return found


def _harmed(stages: Sequence[Mapping[str, Any]], index: int) -> int | None:
    """Where the stage is whose damage stage `index` heals: only other healers of it may lie between."""
    kinds = HEALS.get(stages[index]["kind"])
    while kinds is not None and index > 0:
        index -= 1
        if stages[index]["kind"] in kinds:
            return index
        if HEALS.get(stages[index]["kind"]) != kinds:
            return None
    return None


def _fraction(before: float, damaged: float, healed: float) -> float | None:
    return (damaged - healed) / (damaged - before) if damaged > before else None
