"""How much of the damage of one stage the training after it took away, in KL to the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEALERS = {"distill": "prune", "qlora": "nf4"}
"""Kind of a healing stage -> kind of the stage whose damage it heals."""
KL = "kl_to_teacher"


def won_back(baseline: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each healing stage behind the one it heals: `fraction` = (KL damaged - KL healed) / KL the damage added.

    Args:
        baseline: figures of the original (its KL to itself is zero).
        stages: rows of the report, in order.

    Returns:
        One entry per healing stage and text, with what the fraction is made of.
    """
    found = []
    for index, stage in enumerate(stages):
        harmed = stages[index - 1] if index else None
        if harmed is None or HEALERS.get(stage["kind"]) != harmed["kind"]:
            continue
        before = stages[index - 2]["metrics"] if index > 1 else baseline
        for prefix, text in (("", "held-out"), ("second_", "other text")):
            start, damaged, healed = (row[prefix + KL] for row in (before, harmed["metrics"], stage["metrics"]))
            added = damaged - start
            found.append(
                {
                    "stage": stage["name"],
                    "of": harmed["name"],
                    "text": text,
                    "kl_before": start,
                    "kl_damaged": damaged,
                    "kl_healed": healed,
                    "fraction": (damaged - healed) / added if added > 0 else None,
                }
            )
    return found
