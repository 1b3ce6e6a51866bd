"""Writes a GGUF file tensor by tensor: types and sizes first, then the bytes.

llama.cpp turns neighbouring entries of a head where transformers turns the first half against the second, so the rows
of Llama's query and key projections are put in its order; a row's codes move with it, unchanged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compress.arch import adapter_for
from compress.errors import UserError
from compress.export.gguf.header import FAMILIES, check_family, rotation, write_header
from compress.export.gguf.settings import GGUFType
from compress.export.tensors import delivered
from compress.grids import GGUF, Encoded, Grid, grid_named

if TYPE_CHECKING:
    from torch import Tensor

    from compress.checkpoint import Checkpoint

    TypeOf = Callable[[str, bool], GGUFType]

LARGEST_F16 = 65504.0
FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9}
"""llama.cpp's number for a file most of whose matrices are of a type."""


@dataclass(frozen=True)
class Piece:
    """One tensor as it will lie in the file."""

    name: str
    kind: str
    """As `gguf.GGMLQuantizationType` names it."""
    data: Tensor
    """The values, or the bytes of a row in a row."""


def write_gguf(checkpoint: Checkpoint, type_of: TypeOf, file: Path) -> None:
    """Write the checkpoint as one GGUF file.

    Args:
        checkpoint: dense, or on GGUF grids; weights on other grids are decoded and written as f16.
        type_of: the type of a dense matrix, by its name and whether it is embedding or head.
        file: where to.

    Raises:
        UserError: the family, its positions or its tokenizer cannot be written; or a weight that is on another grid
            would have to be rounded a second time.
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    check_family(checkpoint.config)
    file.parent.mkdir(parents=True, exist_ok=True)
    sizes = [(p.name, p.kind, tuple(p.data.shape), p.data.numel()) for p in pieces(checkpoint, type_of)]
    weighed: Counter[str] = Counter()
    for _, kind, _, count in sizes:
        weighed[kind] += count * (kind in FILE_TYPES)
    writer = GGUFWriter(file, FAMILIES[checkpoint.config.model_type])
    write_header(writer, checkpoint, FILE_TYPES[weighed.most_common(1)[0][0]])
    dtypes: dict[str, Any] = {"F32": "float32", "F16": "float16"}
    import numpy as np

    for name, kind, shape, count in sizes:
        raw = None if kind in dtypes else GGMLQuantizationType[kind]
        dtype = np.dtype(dtypes.get(kind, "uint8"))
        writer.add_tensor_info(name, shape, dtype, count * dtype.itemsize, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for piece in pieces(checkpoint, type_of):
        writer.write_tensor_data(piece.data.contiguous().numpy())
    writer.close()


def pieces(checkpoint: Checkpoint, type_of: TypeOf) -> Iterator[Piece]:
    """Every tensor of the file, in the order of the checkpoint, one in memory at a time."""
    import gguf

    config = checkpoint.config
    architecture = adapter_for(config)
    shape, modules = architecture.shape(config), architecture.modules
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == FAMILIES[config.model_type])
    names = gguf.get_tensor_name_map(arch, shape.layers)
    outer = {f"{modules.embedding}.weight", f"{modules.head}.weight"}
    heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads} if FAMILIES[config.model_type] == "llama" else {}
    factors = long_context_factors(config, shape.head_dim)
    if factors is not None:
        yield Piece("rope_freqs.weight", "F32", factors)
    for name, value, grid in delivered(checkpoint):
        path, _, last = name.rpartition(".")
        known = names.get_name(path)
        assert known is not None, name
        if path == modules.positions:
            assert not isinstance(value, Encoded)
            kind, data = "F32", value.float()
        else:
            kind, data = stored_as(name, value, grid, type_of, name in outer, modules.conv1d and name not in outer)
        if count := heads.get(path.rpartition(".")[2]):
            data = turned(data, count)
        yield Piece(f"{known}.{last}", kind, data)


def stored_as(
    name: str, value: Tensor | Encoded, grid: Grid | None, type_of: TypeOf, outer: bool, conv1d: bool
) -> tuple[str, Tensor]:
    """(ggml type, values or bytes [out, ...]) of one weight."""
    if isinstance(value, Encoded):
        assert grid is not None
        if isinstance(grid, GGUF):
            return grid.kind.upper(), value.parts["blocks"]
        if type_of(name, outer) is not GGUFType.f16:
            raise UserError(
                f"{name} is on the grid {grid.name}: writing it as {type_of(name, outer).value} would round it twice.",
                "Quantize on a GGUF grid instead (q4_0, q8_0, q5_0, q5_1), or give export.gguf.type=f16.",
            )
        # on its grid a linear is [out, in] in every family
        return _half(grid.decode(replace(value, dtype=torch.float32)))
    if value.dim() == 1:
        return "F32", value.float()
    weight = value.t().contiguous() if conv1d else value
    kind = type_of(name, outer)
    if kind is GGUFType.f16 or not grid_named(kind.value).fits(weight.shape):
        return _half(weight)
    return kind.value.upper(), grid_named(kind.value).encode(weight.float()).parts["blocks"]


def _half(weight: Tensor) -> tuple[str, Tensor]:
    """As f16, or f32 where f16 ends."""
    if float(weight.abs().max()) > LARGEST_F16:
        return "F32", weight.float()
    return "F16", weight.to(torch.float16)


def turned(rows: Tensor, heads: int) -> Tensor:
    """Rows [heads * size, ...] of a query or key projection (or its bias) in llama.cpp's order within a head."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def long_context_factors(config: Any, head_dim: int) -> Tensor | None:
    """What Llama 3 divides the frequencies of its positions by, fp32 [head_dim / 2]; None for other models."""
    given = rotation(config)
    if given.get("rope_type") != "llama3":
        return None
    base, factor, old = given["rope_theta"], given["factor"], given["original_max_position_embeddings"]
    low, high = given["low_freq_factor"], given["high_freq_factor"]
    length = 2 * torch.pi * base ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    smooth = ((old / length - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - smooth) / factor + smooth)
