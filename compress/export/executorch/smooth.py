"""Loud channels made quieter before their tensors are rounded, where the program's own weights can make up for it.

XNNPACK gives every token one step of 1/255 of its range. A few channels, tens of times as loud as the others, set that
step: SmoothQuant (arXiv 2211.10438, eq. 4) hands their size to the weights that read them. The head of a program is a
tensor of its own, so that the last norm can hand its channels on too, which no checkpoint with tied weights can.

The inputs are seen on text that the model writes itself: an export needs no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compress.arch import adapter_for
from compress.data.windows import readable
from compress.folds import Edge, best_scale, fold_layer
from compress.grids import Grid
from compress.layerwise import Layers, batches
from compress.runtime.sampling import sample_windows

WINDOWS, LENGTH, SEED = 8, 128, 0
"""Of the text that loudness is seen on: 1,024 tokens, as many as the scales are compared on."""


@torch.no_grad()
def smooth(model: Any, tokenizer: Any, grids: Mapping[str, Grid]) -> None:
    """Move scales between the layers of `model`, in place; what it computes stays the same.

    Args:
        model: in fp32, projections and head nn.Linear, the head no longer the embedding's tensor.
        tokenizer: its tokenizer.
        grids: path -> grid of every projection, and the head, whose weight will be rounded.
    """
    architecture = adapter_for(model.config)
    modules = architecture.modules
    windows = sample_windows(model, tokenizer, WINDOWS, readable(LENGTH, model.config), SEED, lambda _: None)
    layers = Layers.of(model, windows)
    hidden = layers.embedded
    for index in range(len(layers.calls)):
        # a projection with codes of its own takes no scale of another's
        if all(path in grids for path in modules.linears(index)):
            fold_layer(layers, index, hidden, grids, conv1d=False, smooth=True, int8_inputs=True)
        hidden = torch.cat([layers.run(index, x) for x in batches(hidden)])
    if modules.head in grids:
        norm: nn.Module = model.get_submodule(modules.final_norm)
        read: Tensor = norm(hidden).flatten(0, 1)
        edge = Edge(norm, [model.get_submodule(modules.head)], heads=None, conv1d=False)
        edge.apply(best_scale(edge, read, {0: grids[modules.head]}, smooth=True, int8_inputs=True))
