"""A text and the model's own writing in one set of windows.

What the model has written lies in pieces of one length, each a text of its own; they are cut for shorter windows, and
joined end to end to fill longer ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress.data.windows import Windows

if TYPE_CHECKING:
    import torch

PASSES = 3
"""Most times a window of the model's own writing is trained on: a long training on a good text is left to that text."""


def cut_to(windows: torch.Tensor, length: int) -> torch.Tensor:
    """Full windows [n, width] as full windows [m, length]; pieces that are left over are dropped, none is joined.

    A `length` above the width leaves them as they are.
    """
    width = windows.shape[1]
    if length >= width:
        return windows
    return windows[:, : width // length * length].reshape(-1, length)


def fitted(windows: torch.Tensor, length: int) -> torch.Tensor:
    """Full windows [n, width] as windows [m, at most length]: cut, or several whole ones joined end to end."""
    together = min(length // windows.shape[1], len(windows))
    if together < 2:
        return cut_to(windows, length)
    return windows[: len(windows) // together * together].reshape(-1, together * windows.shape[1])


def mixed(text: Windows, own: torch.Tensor, share: float, seed: int) -> Windows:
    """`text` with the fraction `share` of its windows replaced by windows of `own` [n, width].

    Each is repeated if need be, up to `PASSES` times; beyond that the text keeps its windows.
    """
    import torch

    length = text.ids.shape[1]
    pieces = fitted(own, length).to(torch.int32)
    replaced = min(round(share * len(text.ids)), PASSES * len(pieces)) if own.numel() else 0
    if not replaced:
        return text
    chosen = pieces[torch.arange(replaced) % len(pieces)]
    lengths = torch.full((replaced,), chosen.shape[1], dtype=torch.int32)
    chosen = torch.nn.functional.pad(chosen, (0, length - chosen.shape[1]), value=int(text.ids[0, -1]))
    order = torch.randperm(len(text.ids), generator=torch.Generator().manual_seed(seed))
    ids = torch.cat([text.ids[replaced:], chosen])[order]
    return Windows(ids, torch.cat([text.lengths[replaced:], lengths])[order])
