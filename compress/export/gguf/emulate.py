"""What llama.cpp must answer: the pipeline's model in fp32, with activations rounded as its products round them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from compress.arch import adapter_for
from compress.export.emulate import Rounding, answer, blocks_of_32, half, rounded_inputs
from compress.export.gguf.write import DTYPES, contents, kind_of
from compress.export.tensors import computes_plainly, delivered, dense_model
from compress.grids import Encoded, grid_named

if TYPE_CHECKING:
    from torch import Tensor

    from compress.checkpoint import Checkpoint
    from compress.export.base import Load
    from compress.export.gguf.write import TypeOf


@torch.no_grad()
def expected(checkpoint: Checkpoint, type_of: TypeOf, ids: Tensor, load: Load) -> tuple[Tensor, Tensor | None, bool]:
    """What the file must answer to `ids`.

    Returns:
        Logits [length, vocab] of the pipeline's model in fp32; those of its emulation, or None where the pipeline's
        model computes what the file says; and whether the file holds blocks, so that activations are rounded.

    Weights that the export rounded are rounded in the emulation too; those that were on their grid before are decoded.
    """
    pipeline = answer(load(checkpoint, torch.float32), ids)
    model = dense_model(checkpoint, torch.float32)
    architecture = adapter_for(checkpoint.config)
    modules, shape = architecture.modules, architecture.shape(checkpoint.config)
    outer = [f"{modules.embedding}.weight", f"{modules.head}.weight"]
    parameters = dict(model.named_parameters())
    rules: dict[str, Rounding] = {}
    rounds = False
    for name, value, grid in delivered(checkpoint):
        path = name.removesuffix(".weight")
        if path in (name, modules.positions) or (not isinstance(value, Encoded) and value.dim() == 1):
            continue
        conv1d = modules.conv1d and name not in outer
        kind = kind_of(name, value, grid, type_of, name in outer, conv1d)
        on_blocks = kind not in DTYPES
        rounds |= on_blocks
        if on_blocks and not isinstance(value, Encoded):
            data = contents(kind, value, None, conv1d)
            size = value.t().shape if conv1d else value.shape
            weight = grid_named(kind.lower()).decode(Encoded({"blocks": data}, size, torch.float32))
            parameters[name].copy_(weight.t() if conv1d else weight)
        reads = modules.head if path == modules.embedding and shape.tied else path
        if kind != "F32" and reads != modules.embedding:
            rules[reads] = blocks_of_32 if on_blocks else half
    if not rounds and computes_plainly(checkpoint):
        return pipeline, None, False
    with rounded_inputs(model, rules):
        return pipeline, answer(model, ids), rounds
