"""What groups and layers can be scored by (`importance` has the formulas)."""

from __future__ import annotations

from enum import Enum


class Importance(str, Enum):
    """Of MLP neurons, KV groups, query heads and residual channels."""

    activation = "activation"
    wanda = "wanda"
    taylor = "taylor"
    fisher = "fisher"
    magnitude = "magnitude"
    random = "random"


class LayerImportance(str, Enum):
    """Of layers."""

    block_influence = "block_influence"
    angular = "angular"
    perplexity = "perplexity"
    random = "random"
