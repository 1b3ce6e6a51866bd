"""Writes the graph of a checkpoint and its weights, and says in torch what the graph must answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress.arch import adapter_for
from compress.arch.linears import linear_paths
from compress.checkpoint import PLAN
from compress.errors import UserError
from compress.export.embedding import Int8Embedding
from compress.export.emulate import answer, last_bits_moved, rounded_inputs, tokens_to_symmetric_int8
from compress.export.onnx.graph import traced
from compress.export.onnx.int8 import Int8Product
from compress.export.onnx.settings import FILE, InputType, OnnxExport, OnnxType
from compress.export.rotation import Rotated, rotated_rows
from compress.export.tensors import computes_plainly, delivered, dense_model
from compress.export.two_parts import TwoParts
from compress.export.verify import compare
from compress.grids import Encoded, Grid, Int8
from compress.runtime.int8 import Int8Linear
from compress.runtime.modules import replace_module

if TYPE_CHECKING:
    from compress.checkpoint import Checkpoint
    from compress.export.base import Load


def write_onnx(checkpoint: Checkpoint, settings: OnnxExport, folder: Path) -> None:
    """Trace and write the graph, with config and tokenizer beside it.

    Raises:
        UserError: INT8 is asked for, and the checkpoint lies on another grid.
    """
    model = exported_model(checkpoint, settings)
    embedding: Any = model.get_input_embeddings()
    for name, module in list(model.named_modules()):
        if isinstance(module, Int8Linear):
            replace_module(model, name, Int8Product(module, getattr(embedding, "codes", None) is module.codes))
    shape = adapter_for(checkpoint.config).shape(checkpoint.config)
    program = traced(model, shape.layers, shape.kv_heads, shape.head_dim)
    folder.mkdir(parents=True)
    checkpoint.copy_sidecars(folder)
    (folder / PLAN).unlink(missing_ok=True)
    program.save(str(folder / FILE), external_data=True)


def exported_model(checkpoint: Checkpoint, settings: OnnxExport) -> Any:
    """The model that is exported, in torch: what is INT8 as `Int8Linear` and `Int8Embedding`, all else dense fp32.

    Where a dense weight is rounded here, it is rotated first, and so are the inputs it reads (`settings.rotate`).
    """
    model = dense_model(checkpoint, torch.float32)
    architecture = adapter_for(checkpoint.config)
    modules, shape = architecture.modules, architecture.shape(checkpoint.config)
    rounded = set(linear_paths(checkpoint.config)) if settings.type is OnnxType.int8 else set()
    if settings.outer is OnnxType.int8:
        rounded |= {modules.embedding, modules.head}
    for name, value, grid in delivered(checkpoint):
        path = name.removesuffix(".weight")
        if path not in rounded or path == name:
            continue
        turned = modules.conv1d and path not in (modules.embedding, modules.head)
        reads = path != modules.embedding or shape.tied
        rotated = settings.rotate and reads and not isinstance(value, Encoded)
        parts = _on_int8(name, value, grid, turned, rotated).parts
        layers = [path]
        if path == modules.embedding:
            replace_module(model, path, Int8Embedding(parts["codes"], parts["absmax"], rotated))
            layers = [modules.head] if shape.tied else []
            parts = {**parts, "codes": model.get_submodule(path).codes}
        for layer in layers:
            bias = model.get_submodule(layer).bias
            replace_module(model, layer, _product(parts, None if bias is None else bias.data, rotated, settings))
    return model


def _product(parts: Mapping[str, Tensor], bias: Tensor | None, rotated: bool, settings: OnnxExport) -> nn.Module:
    """What multiplies with codes int8 [out, in]."""
    activations = settings.activations or (InputType.int8 if rotated else InputType.int16)
    product: nn.Module
    if activations is InputType.int16:
        product = TwoParts(Int8Linear(parts["codes"], parts["absmax"], None), tokens_to_symmetric_int8, bias)
    else:
        product = Int8Linear(parts["codes"], parts["absmax"], bias)
    return Rotated(product, parts["codes"].shape[1]) if rotated else product


def _on_int8(name: str, value: Tensor | Encoded, grid: Grid | None, turned: bool, rotated: bool) -> Encoded:
    """Codes [out, in]: the checkpoint's own, or those nearest to a dense weight; `turned` ones lie as [in, out]."""
    if not isinstance(value, Encoded):
        rows = value.float().t().contiguous() if turned else value.float()
        return Int8().encode(rotated_rows(rows) if rotated else rows)
    if not isinstance(grid, Int8):
        raise UserError(
            f"the export onnx would round {name} twice: it lies on the grid {grid.name if grid else 'dense'} already.",
            "Type export.onnx.type=fp32, or quantize on the INT8 grid: quant@stages.quant=int8.",
        )
    return value


@torch.no_grad()
def expected(
    checkpoint: Checkpoint, settings: OnnxExport, ids: Tensor, load: Load
) -> tuple[Tensor, Tensor | None, float]:
    """Logits [length, vocab] of the pipeline's model, and of the exported one in torch where that is another.

    The number is how far two exact computations of the exported model may be apart, as mean KL in nats.
    """
    pipeline = answer(load(checkpoint, torch.float32), ids)
    if OnnxType.int8 not in (settings.type, settings.outer) and computes_plainly(checkpoint):
        return pipeline, None, 0.0
    model = exported_model(checkpoint, settings)
    emulated = answer(model, ids)
    products = [name for name, module in model.named_modules() if isinstance(module, (Int8Linear, TwoParts))]
    if not products:
        return pipeline, emulated, 0.0
    with rounded_inputs(model, dict.fromkeys(products, last_bits_moved)):
        again = answer(model, ids)
    return pipeline, emulated, compare(emulated, again, math.inf).mean_kl
