"""Writes a checkpoint as an ExecuTorch program, and says in torch what the program must answer.

8da4w: a projection is INT4 in groups with scales in bf16 (the type XNNPACK keeps them in), its input INT8 per token
with a zero point; the head, and rows that are no whole groups, are INT8 per channel on the same inputs (8da8w).
Embedding rows are INT8 with one scale each, decoded when looked up. Where a weight is rounded here, its loud channels
are smoothed first, and what it reads is rotated; what INT8 codes of the checkpoint's own read is rounded in two parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress.arch import adapter_for
from compress.arch.linears import linear_paths
from compress.checkpoint import PLAN
from compress.data.windows import readable
from compress.errors import UserError
from compress.export.embedding import Int8Embedding
from compress.export.emulate import answer, last_bits_moved, rounded_inputs, tokens_to_asymmetric_int8
from compress.export.executorch.program import Program, lowered
from compress.export.executorch.settings import EIGHT_FOUR, FILE, ExecutorchExport
from compress.export.executorch.smooth import smooth
from compress.export.rotation import Rotated, rotated_rows
from compress.export.tensors import computes_plainly, delivered, dense_model
from compress.export.two_parts import TwoParts
from compress.export.verify import compare
from compress.grids import Encoded, Int8, Integer
from compress.runtime.modules import replace_module

if TYPE_CHECKING:
    from compress.checkpoint import Checkpoint
    from compress.export.base import Load


@dataclass(frozen=True)
class Codes:
    """A quantized projection: codes int8 [out, in], scales fp32 [out, groups] (one group: per channel)."""

    codes: Tensor
    scale: Tensor
    bits: int

    @property
    def decoded(self) -> Tensor:
        """[out, in]."""
        return (self.codes.float().view(*self.scale.shape, -1) * self.scale[..., None]).flatten(1)


def write_program(checkpoint: Checkpoint, settings: ExecutorchExport, folder: Path) -> None:
    """Trace, lower and write, with config and tokenizer beside it.

    Raises:
        UserError: 8da4w is asked for, and the checkpoint lies on a grid XNNPACK has no products for.
    """
    model, codes = exported_model(checkpoint, settings)
    for path, found in codes.items():
        model.get_submodule(path).weight = nn.Parameter(_torchao(found), requires_grad=False)
    config = checkpoint.config
    shape = adapter_for(config).shape(config)
    context = readable(settings.context, config)
    program = Program(model, shape.layers, shape.kv_heads, shape.head_dim, context)
    ends = config.eos_token_id
    metadata = {
        "get_max_seq_len": context,
        "get_max_context_len": context,
        "get_vocab_size": shape.vocab,
        "get_bos_id": config.bos_token_id,
        "get_eos_ids": list(ends) if isinstance(ends, list | tuple) else ends,
        "use_kv_cache": True,
        "enable_dynamic_shape": True,
    }
    written = lowered(program, {name: value for name, value in metadata.items() if value is not None})
    folder.mkdir(parents=True)
    checkpoint.copy_sidecars(folder)
    (folder / PLAN).unlink(missing_ok=True)
    (folder / FILE).write_bytes(written)


def exported_model(checkpoint: Checkpoint, settings: ExecutorchExport) -> tuple[Any, dict[str, Codes]]:
    """The model in fp32 with every projection an nn.Linear of decoded weights, and the codes of the quantized ones."""
    model = dense_model(checkpoint, torch.float32)
    modules = adapter_for(checkpoint.config).modules
    linears = linear_paths(checkpoint.config)
    for path in linears if modules.conv1d else ():
        _as_linear(model, path)
    if settings.type is not EIGHT_FOUR:
        return model, {}
    _untie(model, modules.head)
    own = _own_codes(checkpoint)
    codes = dict(own)
    places = [*linears, modules.head, modules.embedding]
    grids = {path: _grid(model, path, settings.group if path in linears else 0) for path in places if path not in codes}
    if settings.smooth:
        smooth(model, checkpoint.tokenizer(), {path: grid for path, grid in grids.items() if path != modules.embedding})
    for path, grid in grids.items():
        weight = model.get_submodule(path).weight.detach()
        rotated = settings.rotate and path != modules.embedding
        place = _rotated(model, path) if rotated else path
        codes[place] = _unpacked(grid.encode(rotated_rows(weight) if rotated else weight), grid)
    rows = codes.pop(modules.embedding)
    for path in [path for path, found in own.items() if found.bits == 8 and path != modules.embedding]:
        codes[_in_two_parts(model, path)] = codes.pop(path)
    replace_module(model, modules.embedding, Int8Embedding(rows.codes, rows.scale[:, 0] * 127))
    for path, found in codes.items():
        model.get_submodule(path).weight = nn.Parameter(found.decoded, requires_grad=False)
    return model, codes


def _untie(model: nn.Module, head: str) -> None:
    """A parameter of its own for a head that is the embedding's."""
    layer: Any = model.get_submodule(head)
    layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)


def _rotated(model: nn.Module, path: str) -> str:
    """Rotate the inputs of a projection; where it is now."""
    layer: Any = model.get_submodule(path)
    replace_module(model, path, Rotated(layer, layer.in_features))
    return f"{path}.layer"


def _in_two_parts(model: nn.Module, path: str) -> str:
    """Round the inputs of a projection in two parts; where it is now."""
    layer: Any = model.get_submodule(path)
    bias = None if layer.bias is None else layer.bias.detach()
    layer.bias = None
    replace_module(model, path, TwoParts(layer, tokens_to_asymmetric_int8, bias))
    return f"{path}.layer"


def _own_codes(checkpoint: Checkpoint) -> dict[str, Codes]:
    """Module path -> codes of what the checkpoint holds on a grid; a tied embedding's are the head's too.

    Raises:
        UserError: it is no grid that XNNPACK has products for.
    """
    architecture = adapter_for(checkpoint.config)
    modules, codes = architecture.modules, {}
    for name, value, grid in delivered(checkpoint):
        if not isinstance(value, Encoded):
            continue
        if not (isinstance(grid, Int8) or (isinstance(grid, Integer) and grid.symmetric and grid.block % 32 == 0)):
            raise UserError(
                f"the export executorch would round {name} twice: it lies on the grid {grid and grid.name} already.",
                "Type export.executorch.type=fp32, or quantize on a grid of XNNPACK: int8 or a symmetric int4.",
            )
        codes[name.removesuffix(".weight")] = _unpacked(value, grid)
    if modules.embedding in codes and architecture.shape(checkpoint.config).tied:
        codes[modules.head] = codes[modules.embedding]
    return codes


def _grid(model: nn.Module, path: str, group: int) -> Int8 | Integer:
    """What a dense weight is rounded to: INT4 in groups, INT8 per row where `group` is 0 or does not fit."""
    width = model.get_submodule(path).weight.shape[1]  # type: ignore[index]
    return Integer(4, group) if group and width % group == 0 else Int8()


def _unpacked(value: Encoded, grid: Int8 | Integer) -> Codes:
    """A group of zeros has a scale of zero, which XNNPACK refuses when the program is loaded: it gets one of 1."""
    levels, scales = grid.unpack(replace(value, dtype=torch.float32))
    bits = 8 if isinstance(grid, Int8) else grid.bits_per_code
    scale = scales.scale.float().view(len(levels), -1)
    nothing = scale < torch.finfo(torch.float32).tiny
    grouped = levels.to(torch.int8).view(*scale.shape, -1).masked_fill(nothing[..., None], 0)
    return Codes(grouped.flatten(1), scale.masked_fill(nothing, 1.0), bits)


def _as_linear(model: nn.Module, path: str) -> None:
    """GPT-2's Conv1D as an nn.Linear."""
    before: Any = model.get_submodule(path)
    width, rows = before.weight.shape
    layer = nn.Linear(width, rows, bias=before.bias is not None)
    with torch.no_grad():
        layer.weight.copy_(before.weight.t())
        if before.bias is not None:
            layer.bias.copy_(before.bias)
    replace_module(model, path, layer)


def _torchao(found: Codes) -> Tensor:
    """The tensor whose products ExecuTorch gives to XNNPACK."""
    from torchao.quantization import IntxUnpackedToInt8Tensor

    return IntxUnpackedToInt8Tensor(
        qdata=found.codes,
        scale=found.scale,
        zero_point=torch.zeros_like(found.scale, dtype=torch.int8),
        target_dtype=getattr(torch, f"int{found.bits}"),
        block_size=(1, found.codes.shape[1] // found.scale.shape[1]),
        dtype=torch.float32,
        activation_quantization="int8_asym_per_token",
    )


@torch.no_grad()
def expected(
    checkpoint: Checkpoint, settings: ExecutorchExport, ids: Tensor, load: Load
) -> tuple[Tensor, Tensor | None, float]:
    """Logits [length, vocab] of the pipeline's model, and of the exported one in torch where that is another.

    The number is how far two exact computations of the exported model may be apart, as mean KL in nats: where one
    outlier sets the step of a token, a sum in another order moves a code, and with it what every later layer sees.
    """
    pipeline = answer(load(checkpoint, torch.float32), ids)
    if settings.type is not EIGHT_FOUR and computes_plainly(checkpoint):
        return pipeline, None, 0.0
    model, codes = exported_model(checkpoint, settings)
    with rounded_inputs(model, dict.fromkeys(codes, tokens_to_asymmetric_int8)):
        emulated = answer(model, ids)
    if not codes:
        return pipeline, emulated, 0.0
    parts = {f"{name}.layer": name for name, module in model.named_modules() if isinstance(module, TwoParts)}
    read = [parts.get(path, path) for path in codes]
    moved = rounded_inputs(model, dict.fromkeys(read, last_bits_moved))
    with moved, rounded_inputs(model, dict.fromkeys(codes, tokens_to_asymmetric_int8)):
        again = answer(model, ids)
    return pipeline, emulated, compare(emulated, again, math.inf).mean_kl
