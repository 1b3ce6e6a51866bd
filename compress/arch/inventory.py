"""Every parameter of a model in closed form: name, shape and what it is for, from its config alone.

total          = embedding + head (unless tied) + positions + final norm + layers x one layer
non-embedding  = final norm + layers x one layer
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

from compress.arch import adapter_for
from compress.arch.base import Config
from compress.arch.shape import Widths

Role = Literal["embedding", "head", "linear", "other"]


@dataclass(frozen=True)
class Parameter:
    """One tensor of a dense checkpoint, as the checkpoint shapes it."""

    name: str
    shape: tuple[int, ...]
    role: Role
    """linear: a projection of attention or MLP, what is quantized; other: norms, biases, learned positions."""

    @property
    def numel(self) -> int:
        """Entries."""
        return prod(self.shape)


def inventory(config: Config, widths: Widths | None = None) -> Iterator[Parameter]:
    """All parameters, layer by layer; a tied head is not among them.

    Args:
        config: of the dense model; a transformers config or a `PlainConfig`.
        widths: as if the model had been cut to these; default: its own.
    """
    architecture = adapter_for(config)
    modules, shape = architecture.modules, architecture.shape(config)
    widths = widths or shape.widths
    linears = {f"{name}.weight" for name in (*modules.attention, *modules.mlp)}
    roles: dict[str, Role] = {f"{modules.embedding}.weight": "embedding", f"{modules.head}.weight": "head"}
    for name, axes in architecture.outside_tensors(config).items():
        role = roles.get(name, "other")
        if not (role == "head" and shape.tied):
            yield Parameter(name, tuple(axis.size(widths) for axis in axes), role)
    layer = {
        name: tuple(axis.size(widths) for axis in axes)
        for name, axes in architecture.layer_tensors(config, shape).items()
    }
    for index in range(widths.layers):
        for name, sizes in layer.items():
            yield Parameter(f"{modules.layer(index)}.{name}", sizes, "linear" if name in linears else "other")


def total_parameters(config: Config, widths: Widths | None = None) -> int:
    """All parameters, tied ones counted once."""
    return sum(parameter.numel for parameter in inventory(config, widths))
