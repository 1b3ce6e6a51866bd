"""Layers by what the text's loss becomes without them, one by one: SLEB (arXiv 2402.09025, section 3.3).

    repeat n times: drop the layer of those left whose removal leaves the lowest loss

Candidates share the stream up to the layer they lack, which halves the work: remove * layers^2 / 2 passes of a layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.arch import Architecture
from compress.layerwise import Layers, batches
from compress.prune.text_loss import losses

if TYPE_CHECKING:
    from compress.stage import Advance


def rounds(layers: int, remove: int) -> int:
    """Losses that are measured: the units `greedy_removal` advances by."""
    return sum(layers - done for done in range(remove))


@torch.no_grad()
def greedy_removal(model: Any, architecture: Architecture, windows: Tensor, remove: int, advance: Advance) -> Tensor:
    """Scores [layers] under which the greedy choice goes: 0 for the first to go, then 1; those that stay, the most.

    Args:
        model: causal language model.
        architecture: its family.
        windows: tokens [n, length].
        remove: layers to drop.
        advance: called with 1 for every loss.
    """
    walked = Layers.of(model, windows)
    final = model.get_submodule(architecture.modules.final_norm)
    left = list(range(len(walked.calls)))
    scores = torch.full((len(left),), float(remove))

    def through(layer: int, x: Tensor) -> Tensor:
        return torch.cat([walked.run(layer, part) for part in batches(x)])

    for done in range(remove):
        measured: list[float] = []
        stream = walked.embedded
        for place, layer in enumerate(left):
            without = stream
            for after in left[place + 1 :]:
                without = through(after, without)
            measured.append(sum(_loss(model, final(x), ids) for x, ids in zip(without, windows, strict=True)))
            stream = through(layer, stream)
            advance(1)
        gone = left.pop(min(range(len(left)), key=measured.__getitem__))
        scores[gone] = done
    return scores


def _loss(model: Any, normed: Tensor, ids: Tensor) -> float:
    return sum(float(loss) for _, loss in losses(model, normed, ids))
