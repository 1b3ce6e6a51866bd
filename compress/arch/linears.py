"""The linear layers of a model: what is quantized, and what adapters sit on."""

from __future__ import annotations

from compress.arch import adapter_for
from compress.arch.base import Config


def linear_paths(config: Config) -> list[str]:
    """Module paths of every projection of attention and MLP, layer by layer; embedding and head are not among them."""
    architecture = adapter_for(config)
    layers = architecture.shape(config).layers
    return [path for layer in range(layers) for path in architecture.modules.linears(layer)]
