"""Loads what a training stage needs and writes what it made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from compress.arch import adapter_for
from compress.checkpoint import Checkpoint, write_config
from compress.data.mixing import mixed
from compress.data.rows import check_rows
from compress.data.windows import last_windows, readable, training_windows
from compress.errors import UserError
from compress.runtime.loading import load_model, load_original
from compress.writer import TensorWriter

if TYPE_CHECKING:
    from torch import Tensor

    from compress.data.windows import Windows
    from compress.stage import Context
    from compress.train.settings import Training


def place_for(settings: Training, context: Context) -> torch.device:
    """Where models are loaded that will train: several processes read them from a file, each onto its own device, and a
    copy on the first GPU would stand in the way of the one that trains there."""
    return torch.device("cpu") if settings.devices > 1 else context.fabric.device


def load_teacher(settings: Training, context: Context) -> Any:
    """The original model, frozen."""
    return load_original(context.original, place_for(settings, context)).requires_grad_(False)


def load_student(checkpoint: Checkpoint, settings: Training, context: Context) -> Any:
    """The checkpoint as fp32 master weights, all of them training: a bf16 weight would swallow small updates."""
    model = load_model(checkpoint.folder, dtype=torch.float32, device=place_for(settings, context))
    return model.requires_grad_(True)


def windows_for(settings: Training, context: Context) -> Windows:
    """The training text in windows."""
    length = readable(settings.length, context.original.config)
    limited = f" (train.length={settings.length}: the model has {length} positions)" if length < settings.length else ""
    context.progress.say(f"reading {settings.tokens:,} training tokens of {context.corpus.name}{limited}")
    text = training_windows(
        context.corpus.train,
        context.original.tokenizer(),
        length=length,
        tokens=settings.tokens,
        seed=context.seed,
        setting="train.length",
    )
    check_rows(text.ids, context.original)
    return mixed(text, context.own_text(), settings.own_share, context.seed)


def held_out_for(settings: Training, context: Context) -> Tensor:
    """Windows [n, length] to validate on, the same number for every process.

    Raises:
        UserError: the held-out text is too short.
    """
    length = readable(settings.length, context.original.config)
    windows = last_windows(
        context.corpus.heldout,
        context.original.tokenizer(),
        length=length,
        tokens=max(settings.validate_tokens, settings.devices * length),
        setting="train.length",
    )
    if len(windows) < settings.devices:
        raise UserError(
            f"the held-out text gives {len(windows)} windows of {length} tokens to validate on, and there are "
            f"train.devices={settings.devices} processes.",
            "Give more text or a smaller train.length.",
        )
    return windows


def write_dense(model: Any, source: Checkpoint, context: Context) -> Checkpoint:
    """Write a trained dense model with the names, types and sidecars of the checkpoint it came from."""
    state = model.state_dict()
    architecture = adapter_for(source.config)
    writer = TensorWriter(context.folder, source.shards)
    for name, tensor in source.tensors():
        if architecture.is_tied_copy(source.config, name):
            continue
        trained = state.get(architecture.parameter(name))
        # a buffer that models no longer hold stays as it is
        writer.add(name, tensor if trained is None else trained.detach().to("cpu", tensor.dtype))
    writer.close()
    source.copy_sidecars(context.folder)
    write_config(context.folder, source.config)
    return Checkpoint(context.folder, source.traits, source.name)
