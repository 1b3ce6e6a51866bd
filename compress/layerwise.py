"""A model one layer at a time: hidden states go through a layer, and what its modules see can be looked at.

What has to be known of a layer is learned as it is passed; only one layer's activations are in memory. Compensation
after pruning and calibrated quantization both walk like this.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.arch import adapter_for
from compress.runtime.attention import faster_attention
from compress.train.module import last_hidden

BATCH_TOKENS = 1024
"""Tokens that go through a layer together."""


def batches(hidden: Tensor) -> tuple[Tensor, ...]:
    """Hidden states [windows, length, width] in parts that go through a layer together."""
    return torch.split(hidden, max(1, BATCH_TOKENS // hidden.shape[1]))


@dataclass
class Layers:
    """A model's layers, each callable alone on hidden states [batch, length, width]."""

    model: Any
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    embedded: Tensor
    """Hidden states before the first layer, [windows, length, width]."""

    @classmethod
    def of(cls, model: Any, windows: Tensor) -> Layers:
        """Record what the model calls its layers with (the same for all windows of one length), and its embeddings."""
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"}))

        layers = model.get_submodule(adapter_for(model.config).modules.layers)
        handles = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
        try:
            last_hidden(model, windows[:1].to(model.device))
        finally:
            for handle in handles:
                handle.remove()
        return cls(model, calls, embedded(model, windows))

    def run(self, index: int, hidden: Tensor) -> Tensor:
        """Layer `index` on some windows."""
        layers: Any = self.model.get_submodule(adapter_for(self.model.config).modules.layers)
        args, kwargs = self.calls[index]
        with faster_attention(self.model.config, hidden):
            out = layers[index](hidden, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out


class EnoughSeen(Exception):  # noqa: N818 - no error: it ends a layer once what was wanted is known
    """Leaves a layer early."""


def embedded(model: Any, windows: Tensor) -> Tensor:
    """Hidden states before the first layer, [windows, length, width], of tokens [windows, length]; no layer is run."""
    states: list[Tensor] = []

    def leave(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])
        raise EnoughSeen

    first = model.get_submodule(adapter_for(model.config).modules.layers)[0]
    handle = first.register_forward_pre_hook(leave, with_kwargs=True)
    try:
        for window in windows:
            with suppress(EnoughSeen):
                last_hidden(model, window[None].to(model.device))
    finally:
        handle.remove()
    return torch.cat(states)


def inputs_and_output(
    layers: Layers, index: int, hidden: Tensor, paths: Sequence[str]
) -> tuple[dict[str, list[Tensor]], Tensor]:
    """Inputs of the layers at `paths`, batch by batch, and the stream after the whole layer."""
    inputs: dict[str, list[Tensor]] = {path: [] for path in paths}

    def keep(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, args: inputs[path].append(args[0])

    handles = [layers.model.get_submodule(path).register_forward_pre_hook(keep(path)) for path in inputs]
    after = torch.cat([layers.run(index, x) for x in batches(hidden)])
    for handle in handles:
        handle.remove()
    return inputs, after


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the input of every call of `module`, and leaves the layer there."""
    seen: list[Tensor] = []

    def look(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])
        raise EnoughSeen

    handle = module.register_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def outputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the output of every call of `module`, and leaves the layer there."""
    seen: list[Tensor] = []

    def look(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        del args
        seen.append(out)
        raise EnoughSeen

    handle = module.register_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def watching(module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collects (input, output) of every call of `module`."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = module.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def already_known(model: Any, path: str, inputs: Sequence[Tensor], attention: bool) -> Iterator[None]:
    """Inside, the block that ends with the projection at `path` is not computed again: its inputs are known.

    Calls of the attention or MLP give the projection of `inputs`, one after the other and from the start again, so the
    batches have to come in the order in which the inputs were seen.

    Args:
        model: whose layers are run.
        path: of the block's last projection: `Modules.head_outputs` or `Modules.neurons`.
        inputs: of that projection, batch by batch.
        attention: whether the block is an attention, which gives its weights too (None here).
    """
    block, projection = model.get_submodule(path.rpartition(".")[0]), model.get_submodule(path)
    calls = itertools.cycle(inputs)

    def known(*_: Any, **__: Any) -> Any:
        out = projection(next(calls))
        return (out, None) if attention else out

    block.forward = known
    try:
        yield
    finally:
        del block.forward
