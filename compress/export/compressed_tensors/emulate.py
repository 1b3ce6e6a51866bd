"""What transformers must answer with a compressed-tensors folder: the pipeline's model with its arithmetic.

weight       code * scale, the scale in the model's type
activations  per token: step = absmax / 127.5, codes -128 .. 127; ours is absmax / 127, codes -127 .. 127
             static: the stored step, in the model's type
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compress.export.compressed_tensors.settings import Scheme
from compress.export.compressed_tensors.write import Kind, chosen
from compress.export.emulate import answer, range_to_int8, rounded_inputs, tokens_to_int8
from compress.export.tensors import delivered
from compress.grids import Encoded, Int8
from compress.runtime.encoded import INPUT_ABSMAX, INT8_STATIC, INT8_TOKENS
from compress.runtime.loading import reloaded_in
from compress.runtime.modules import replace_module

if TYPE_CHECKING:
    from torch import Tensor

    from compress.checkpoint import Checkpoint
    from compress.export.base import Load


ROUNDED = {
    INT8_TOKENS: "activations rounded to 8 bits per token with 127.5 steps",
    INT8_STATIC: "activations rounded to 8 bits with one step for each layer",
}


@torch.no_grad()
def expected(
    checkpoint: Checkpoint, scheme: Scheme, group: int, ids: Tensor, load: Load
) -> tuple[Tensor, Tensor | None, list[str]]:
    """Logits [length, vocab] of the pipeline's model, of its emulation where the two compute differently, and how the
    latter rounds activations, in words: nothing if it does not."""
    model = load(checkpoint, reloaded_in(checkpoint))
    pipeline = answer(model, ids)
    dense = {name for name, value, _ in delivered(checkpoint) if not isinstance(value, Encoded)}
    rules, differs, rounded = {}, False, set[str]()
    for name, stored, kind in chosen(checkpoint, scheme, group):
        if kind is None:
            continue
        assert isinstance(stored, Encoded)
        value = replace(stored, dtype=model.dtype)  # what it computes in here, whatever it is stored in
        path = name.removesuffix(".weight")
        before: Any = model.get_submodule(path)
        differs |= kind.activations is not None or name in dense or not isinstance(before, nn.Linear)
        replace_module(model, path, plain_linear(value, kind, before.bias).to(model.device))
        if kind.activations is not None:
            rounded.add(ROUNDED[kind.activations])
        if kind.activations == INT8_TOKENS:
            rules[path] = tokens_to_int8
        elif kind.activations == INT8_STATIC:
            rules[path] = partial(range_to_int8, step=(value.parts[INPUT_ABSMAX] / 127).to(model.device, value.dtype))
    if not differs:
        return pipeline, None, []
    with rounded_inputs(model, rules):
        return pipeline, answer(model, ids), sorted(rounded)


def plain_linear(encoded: Encoded, kind: Kind, bias: Tensor | None) -> nn.Linear:
    """A layer that multiplies with what the runtime decodes `encoded` to."""
    weight = kind.grid.decode(encoded)
    if isinstance(kind.grid, Int8):
        codes, scales = kind.grid.unpack(encoded)
        weight = codes.to(encoded.dtype) * scales.scale.to(encoded.dtype)
    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, bias=bias is not None, dtype=weight.dtype)
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    return layer
