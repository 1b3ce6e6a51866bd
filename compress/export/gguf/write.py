"""Writes a GGUF file tensor by tensor: types and sizes first, then the bytes.

llama.cpp turns neighbouring entries of a head where transformers turns the first half against the second, so the rows
of Llama's query and key projections are put in its order; a row's codes move with it, unchanged.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compress.arch import adapter_for
from compress.errors import UserError
from compress.export.gguf.header import check_family, family_name, rotation, write_header
from compress.export.gguf.settings import GGUFType
from compress.export.tensors import delivered
from compress.grids import GGUF, Encoded, Grid, grid_named
from compress.grids.gguf import BLOCK, BLOCK_BYTES

if TYPE_CHECKING:
    from torch import Tensor

    from compress.checkpoint import Checkpoint

    TypeOf = Callable[[str, bool], GGUFType]

LARGEST_F16 = 65504.0
DTYPES = {"F32": "float32", "F16": "float16"}
FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9}
"""llama.cpp's number for a file most of whose matrices are of a type."""


@dataclass(frozen=True)
class Piece:
    """One tensor of the file."""

    name: str
    kind: str
    """As `gguf.GGMLQuantizationType` names it."""
    value: Tensor | Encoded
    grid: Grid | None
    conv1d: bool
    """A dense one lies as [in, out]."""
    heads: int
    """Heads whose rows are reordered; 0 for none."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As it lies in the file; for blocks the bytes of a row in a row."""
        value = self.value
        shape = tuple(value.shape)
        if not isinstance(value, Encoded) and self.conv1d:
            shape = shape[::-1]
        if self.kind in DTYPES:
            return shape
        return (*shape[:-1], shape[-1] // BLOCK * BLOCK_BYTES[self.kind.lower()])

    def data(self) -> Tensor:
        """The values, or the bytes of the blocks."""
        rows = contents(self.kind, self.value, self.grid, self.conv1d)
        return (turned(rows, self.heads) if self.heads else rows).contiguous()


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
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

    check_family(checkpoint.config)
    file.parent.mkdir(parents=True, exist_ok=True)
    sizes = [(piece.name, piece.kind, piece.shape) for piece in pieces(checkpoint, type_of)]
    weighed: Counter[str] = Counter()
    for _, kind, shape in sizes:
        weighed[kind] += math.prod(shape) * (kind in FILE_TYPES)
    writer = GGUFWriter(file, family_name(checkpoint.config))
    write_header(writer, checkpoint, FILE_TYPES[weighed.most_common(1)[0][0]])
    for name, kind, shape in sizes:
        raw = None if kind in DTYPES else GGMLQuantizationType[kind]
        dtype = np.dtype(DTYPES.get(kind, "uint8"))
        writer.add_tensor_info(name, shape, dtype, math.prod(shape) * dtype.itemsize, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for piece in pieces(checkpoint, type_of):
        writer.write_tensor_data(piece.data().numpy())
    writer.close()


def pieces(checkpoint: Checkpoint, type_of: TypeOf) -> Iterator[Piece]:
    """Every tensor of the file, in the order of the checkpoint, one in memory at a time."""
    import gguf

    config = checkpoint.config
    architecture = adapter_for(config)
    shape, modules = architecture.shape(config), architecture.modules
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family_name(config))
    names = gguf.get_tensor_name_map(arch, shape.layers)
    outer = {f"{modules.embedding}.weight", f"{modules.head}.weight"}
    heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads} if family_name(config) == "llama" else {}
    factors = long_context_factors(config, shape.head_dim)
    if factors is not None:
        yield Piece("rope_freqs.weight", "F32", factors, None, False, 0)
    for name, value, grid in delivered(checkpoint):
        path, _, last = name.rpartition(".")
        known = names.get_name(path)
        assert known is not None, name
        conv1d = modules.conv1d and name not in outer and path != modules.positions and len(value.shape) == 2
        kind = "F32" if path == modules.positions else kind_of(name, value, grid, type_of, name in outer, conv1d)
        yield Piece(f"{known}.{last}", kind, value, grid, conv1d, heads.get(path.rpartition(".")[2], 0))


def kind_of(name: str, value: Tensor | Encoded, grid: Grid | None, type_of: TypeOf, outer: bool, conv1d: bool) -> str:
    """The ggml type of one weight; `outer` is an embedding or head."""
    if isinstance(value, Encoded):
        assert grid is not None
        if isinstance(grid, GGUF):
            return grid.kind.upper()
        if type_of(name, outer) is not GGUFType.f16:
            raise UserError(
                f"{name} is on the grid {grid.name}: writing it as {type_of(name, outer).value} would round it twice.",
                "Quantize on a GGUF grid instead (q4_0, q8_0, q5_0, q5_1), or give export.gguf.type=f16.",
            )
        value = grid.decode(value)
    # vectors, and what f16 cannot hold
    if value.dim() == 1 or float(value.abs().max()) > LARGEST_F16:
        return "F32"
    kind = type_of(name, outer)
    fits = kind is not GGUFType.f16 and grid_named(kind.value).fits(value.shape[::-1] if conv1d else value.shape)
    return kind.value.upper() if fits else "F16"


def contents(kind: str, value: Tensor | Encoded, grid: Grid | None, conv1d: bool) -> Tensor:
    """Values or bytes [out, ...] of one weight in the ggml type `kind`."""
    if isinstance(value, Encoded):
        assert grid is not None
        if kind not in DTYPES:
            return value.parts["blocks"]
        # on its grid a linear is [out, in] in every family
        weight = grid.decode(replace(value, dtype=torch.float32))
    else:
        weight = value.t() if conv1d else value
    if kind in DTYPES:
        return weight.to(getattr(torch, DTYPES[kind]))
    return grid_named(kind.lower()).encode(weight.float().contiguous()).parts["blocks"]


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
