"""The allocation against brute force."""

from __future__ import annotations

import itertools
import random

import pytest

from compress.quant.allocation import Choice, allocate, smallest

GRIDS = ("a", "b", "c")


def problem(seed: int, tensors: int, large: bool) -> dict[str, list[Choice]]:
    rng = random.Random(seed)
    unit = 10**7 if large else 1
    return {
        f"t{i}": [
            Choice(name, rng.randint(1, 40) * unit + rng.randint(0, 3), rng.random() ** 4 * 10 ** rng.randint(-6, 0))
            for name in GRIDS[: rng.randint(1, 3)]
        ]
        for i in range(tensors)
    }


def brute_force(choices: dict[str, list[Choice]], budget: int) -> float:
    losses = [
        sum(choice.loss for choice in picked)
        for picked in itertools.product(*choices.values())
        if sum(choice.bytes for choice in picked) <= budget
    ]
    return min(losses, default=float("inf"))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("large", [False, True])
def test_equals_brute_force(seed: int, large: bool) -> None:
    choices = problem(seed, 6, large)
    least = smallest(choices)
    most = sum(max(choice.bytes for choice in options) for options in choices.values())
    for budget in (least, least + 1, (least + most) // 2, most, 2 * most):
        found = allocate(choices, budget)
        assert found is not None and list(found) == list(choices)
        assert all(choice in choices[path] for path, choice in found.items())
        assert sum(choice.bytes for choice in found.values()) <= budget
        loss = sum(choice.loss for choice in found.values())
        assert loss == pytest.approx(brute_force(choices, budget), rel=1e-6, abs=1e-12)


def test_an_impossible_budget_has_no_allocation() -> None:
    choices = problem(0, 4, True)
    assert allocate(choices, smallest(choices) - 1) is None


def test_a_large_model_takes_no_time() -> None:
    """Three hundred tensors of four grids."""
    rng = random.Random(0)
    choices = {
        f"t{i}": [Choice(str(g), size * bits, rng.random() / bits**4) for g, bits in enumerate((36, 44, 48, 68))]
        for i, size in enumerate(rng.choices([41472, 110592, 1000000], k=300))
    }
    budget = smallest(choices) * 5 // 4
    found = allocate(choices, budget)
    assert found is not None
    # the relaxation splits one tensor at most, so hardly a byte is left unused
    assert 0.97 * budget < sum(choice.bytes for choice in found.values()) <= budget
