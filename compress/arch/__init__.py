"""Model families: one short adapter each, and the one table that finds it from a config."""

from __future__ import annotations

from compress.arch.base import Architecture, Config
from compress.arch.decoder import DECODERS
from compress.arch.gpt2 import GPT2
from compress.arch.gpt_neox import GPT_NEOX
from compress.arch.modules import Modules
from compress.arch.shape import KINDS, Axis, Kind, Shape, Widths
from compress.errors import UserError

__all__ = ["FAMILIES", "KINDS", "Architecture", "Axis", "Kind", "Modules", "Shape", "Widths", "adapter_for"]

FAMILIES: dict[str, Architecture] = {**DECODERS, "gpt2": GPT2, "gpt_neox": GPT_NEOX}  # by config.model_type


def adapter_for(config: Config) -> Architecture:
    """The adapter of the family that `config.model_type` names.

    Raises:
        UserError: any other architecture; names the families supported.
    """
    family = getattr(config, "model_type", None)
    if family not in FAMILIES:
        raise UserError(
            f"Models of type `{family}` are not supported.",
            f"Supported are: {', '.join(FAMILIES)} (Llama, Mistral, Qwen2, Qwen3, SmolLM3, GPT-2, GPT-NeoX/Pythia).",
        )
    return FAMILIES[family]
