"""The key-value cache of a transformers model, by the name its version calls it."""

from __future__ import annotations

import inspect
from typing import Any


def with_cache(model: Any, cache: Any) -> dict[str, Any]:
    """Keyword arguments that hand a cache back: `cache` from transformers 5.24 on, `past_key_values` before."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    return {name: cache, "use_cache": True}


def cache_of(output: Any) -> Any:
    """The cache that a model's output carries."""
    return output.cache if "cache" in type(output).__dataclass_fields__ else output.past_key_values
