"""Which model an estimate is about: its config and, where there are any, its tokenizer; never its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.arch import adapter_for
from compress.arch.plain import PlainConfig, plain_config, read_plain_config
from compress.checkpoint import stored_dtype
from compress.errors import UserError
from compress.estimate.form import Form
from compress.estimate.layouts import TYPES
from compress.source import EmbeddedModel, HuggingFaceModel
from compress.source.embedded import NAME

EMBEDDED: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152,
    "max_position_embeddings": 8192, "tie_word_embeddings": True, "dtype": "bfloat16",
}  # fmt: skip
"""Of the embedded model, known before it is fetched."""


@dataclass(frozen=True)
class Subject:
    """A model as an estimate knows it."""

    name: str
    config: PlainConfig
    folder: Path | None = None
    """Where a tokenizer may be."""

    @property
    def form(self) -> Form:
        """The dense model."""
        return Form(self.config, adapter_for(self.config).shape(self.config).widths, self.dtype)

    @property
    def dtype(self) -> str:
        """Of the weights: as their files say, else as config.json says, else what transformers takes then."""
        stated = getattr(self.config, "dtype", None) or getattr(self.config, "torch_dtype", None)
        found = (stored_dtype(self.folder) if self.folder else None) or stated or "float32"
        if found not in TYPES:
            raise UserError(f"config.json says dtype={found!r}.", f"Expected one of {', '.join(TYPES)}.")
        return str(found)


def subject_of(model: Any) -> Subject:
    """What a `model` of the config names; of a hub id nothing but config.json is fetched.

    Raises:
        UserError: there is no such folder or id, or its config is of no supported model.
    """
    if isinstance(model, EmbeddedModel):
        return Subject(NAME, plain_config(EMBEDDED), model.cached())
    assert isinstance(model, HuggingFaceModel)
    folder = model.fetch_small()
    return subject_in(folder, folder.name if Path(model.path).expanduser().exists() else model.path)


def subject_in(folder: Path, name: str) -> Subject:
    """The model of a folder with a config.json."""
    config = read_plain_config(folder)
    if getattr(config, "quantization_config", None):
        raise UserError(
            f"The model in {folder} is already quantized.", "Give the model it was made from: model.path=DIR_OR_ID."
        )
    return Subject(name, config, folder)
