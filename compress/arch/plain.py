"""A model's config.json without transformers, whose import takes seconds and brings torch along.

What a file does not say is filled in from the family's own defaults (transformers 5; the tests compare them). Enough
for everything that `compress.arch` reads: sizes, biases, tying. No weights, no checks beyond sizes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from compress.errors import UserError

_DECODER: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _DECODER
    | {
        "num_key_value_heads": None,
        "head_dim": None,
        "intermediate_size": 11008,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
    },
    "mistral": _DECODER
    | {
        "num_key_value_heads": 8,
        "head_dim": None,
        "intermediate_size": 14336,
        "vocab_size": 32000,
        "max_position_embeddings": 131072,
    },
    "qwen2": _DECODER
    | {
        "num_key_value_heads": 32,
        "head_dim": None,
        "intermediate_size": 22016,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
    },
    "qwen3": _DECODER
    | {
        "num_key_value_heads": 32,
        "head_dim": 128,
        "intermediate_size": 22016,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
    },
    "smollm3": _DECODER
    | {
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": None,
        "intermediate_size": 11008,
        "vocab_size": 128256,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
    "gpt2": {
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "n_positions": 1024,
        "vocab_size": 50257,
        "tie_word_embeddings": True,
        "add_cross_attention": False,
        "scale_attn_by_inverse_layer_idx": False,
    },
    "gpt_neox": {
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24576,
        "vocab_size": 50432,
        "max_position_embeddings": 2048,
        "attention_bias": True,
        "tie_word_embeddings": False,
    },
}
"""What a config of each family means where it says nothing."""

RENAMED = {"gpt2": {"max_position_embeddings": "n_positions"}}
"""Names the program asks by -> names the family's file has."""


class PlainConfig(SimpleNamespace):
    """Attributes as a transformers config of the family has them."""

    def validate(self) -> None:
        """What transformers itself refuses is refused when the model is loaded."""


def plain_config(values: Mapping[str, Any]) -> PlainConfig:
    """The config that `values`, a config.json, describes.

    Raises:
        UserError: a family that is not supported, or a size that is no number.
    """
    from compress.arch import adapter_for

    family = values.get("model_type")
    adapter_for(SimpleNamespace(model_type=family))
    config = PlainConfig(**{**DEFAULTS[str(family)], **values})
    for name, stored in RENAMED.get(str(family), {}).items():
        setattr(config, name, getattr(config, stored))
    for name in DEFAULTS[str(family)]:
        value = getattr(config, name)
        if value is not None and (not isinstance(value, int) or value < 0):
            raise UserError(f"config.json says {name}={value!r}; expected a number or true or false.")
        if value == 0 and not isinstance(value, bool):
            raise UserError(f"config.json says {name}=0.", "Fetch it again: a model has some of these.")
    heads, groups = getattr(config, "num_attention_heads", None), getattr(config, "num_key_value_heads", None)
    if heads and groups and heads % groups:
        raise UserError(
            f"config.json says num_attention_heads={heads} and num_key_value_heads={groups}: heads are shared evenly.",
            "Fetch it again.",
        )
    return config


def read_plain_config(folder: Path) -> PlainConfig:
    """The config of a folder that needs to hold nothing but config.json.

    Raises:
        UserError: it is missing, no JSON object, or of a family that is not supported.
    """
    file = folder / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} has no config.json.", "Give a model folder: model.path=DIR_OR_ID.") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is not valid JSON: {error}.", "Fetch it again.") from error
    if not isinstance(values, dict) or "model_type" not in values:
        raise UserError(f"{file} names no model_type.", "Give the config.json that came with the model.")
    return plain_config(values)
