"""What one weight becomes on disk in each format: names, types and shapes, exactly as the pipeline stores them.

    format             bits per weight                     layout
    bf16, fp32         16, 32                              plain safetensors
    int8               8 + 32 / in                         bitsandbytes: codes, fp32 absmax per row, a format flag
    nf4, fp4           4 + 32 / block                      bitsandbytes: codes, fp32 absmax per block, code table
    ... double quant   4 + (8 + 32 / 256) / block          absmax in 8 bits, with absmax and table of its own
    int4, group g      4 + 16 / g                          compressed-tensors: packed int32, bf16 scales, shape

Sources: QLoRA (arXiv 2305.14314, sec. 3) for double quantization, LLM.int8 (arXiv 2208.07339), and the libraries' own
files. Grids that neither library has, and grids of embeddings, are in our own layout (`compress.estimate.grids`).
A safetensors file is 8 bytes, a JSON header padded to 8, and the tensors one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import NamedTuple

from compress.arch.inventory import Parameter

BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I8": 1, "U8": 1}
TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Names of a config's `dtype` -> safetensors' names."""
NESTED_BLOCK = 256
GGUF_BLOCK = 32
GGUF_BLOCK_BYTES = {"Q4_0": 18, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34}
ROWS_OF_FOUR_BIT = 32
"""bitsandbytes' 4-bit kernels on a CPU take this many rows at a time; what does not fit stays dense."""


class Stored(NamedTuple):
    """One tensor of a safetensors file."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Payload."""
        return BYTES[self.type] * prod(self.shape)


@dataclass(frozen=True)
class Format:
    """How weights are stored. `kind` is dense, int8, nf4, fp4 or int4."""

    kind: str = "dense"
    block: int = 64
    double_quant: bool = True

    def fits(self, out: int, width: int) -> bool:
        """Whether a weight [out, width] can be stored so; otherwise it stays dense."""
        if self.kind in ("nf4", "fp4"):
            return width % self.block == 0 and out % ROWS_OF_FOUR_BIT == 0
        return self.kind != "int4" or width % self.block == 0

    def stored(self, weight: Parameter, dtype: str, transposed: bool = False) -> list[Stored]:
        """The tensors that stand for `weight`.

        Args:
            weight: as the dense checkpoint shapes it.
            dtype: the model's, as config.json names it.
            transposed: the checkpoint holds linears as [in, out] (GPT-2's Conv1D); quantized they are [out, in].
        """
        if self.kind == "dense" or len(weight.shape) != 2:
            return [Stored(weight.name, TYPES[dtype], weight.shape)]
        out, width = dimensions(weight, transposed)
        if not self.fits(out, width):
            return [Stored(weight.name, TYPES[dtype], weight.shape)]
        module = weight.name.removesuffix(".weight")
        if self.kind == "int8":
            return [
                Stored(weight.name, "I8", (out, width)),
                Stored(f"{module}.SCB", "F32", (out,)),
                Stored(f"{module}.weight_format", "U8", ()),
            ]
        if self.kind == "int4":
            return [
                Stored(f"{weight.name}_packed", "I32", (out, -(-width // 8))),
                Stored(f"{weight.name}_scale", "BF16", (out, width // self.block)),
                Stored(f"{weight.name}_shape", "I64", (2,)),
            ]
        return self._four_bit(weight.name, out, width, dtype)

    def _four_bit(self, name: str, out: int, width: int, dtype: str) -> list[Stored]:
        blocks = -(-out * width // self.block)
        tensors = [
            Stored(name, "U8", (-(-out * width // 2), 1)),
            Stored(f"{name}.absmax", "U8" if self.double_quant else "F32", (blocks,)),
            Stored(f"{name}.quant_map", "F32", (16,)),
        ]
        if self.double_quant:
            tensors += [
                Stored(f"{name}.nested_absmax", "F32", (-(-blocks // NESTED_BLOCK),)),
                Stored(f"{name}.nested_quant_map", "F32", (256,)),
            ]
        size = _state_bytes(self.kind, self.block, dtype, out, width, self.double_quant)
        return [*tensors, Stored(f"{name}.quant_state.bitsandbytes__{self.kind}", "U8", (size,))]


@cache
def _state_bytes(kind: str, block: int, dtype: str, out: int, width: int, double_quant: bool) -> int:
    """Size of what bitsandbytes keeps of a weight as JSON."""
    state: dict[str, object] = {"quant_type": kind, "blocksize": block, "dtype": dtype, "shape": [out, width]}
    if double_quant:
        # the offset is a float of any value: its usual number of digits
        state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": 0.0123456789012345678}
    return len(json.dumps(state).encode())


DENSE = Format()


def dimensions(weight: Parameter, transposed: bool) -> tuple[int, int]:
    """(out, in) of a linear layer's weight; `transposed` if the checkpoint holds it as [in, out]."""
    rows, columns = weight.shape
    return (columns, rows) if transposed else (rows, columns)


def file_bytes(tensors: Iterable[Stored]) -> int:
    """Size of a safetensors file that holds `tensors`, header included."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    # safetensors lays them out by falling alignment, then by name
    for tensor in sorted(tensors, key=lambda t: (-BYTES[t.type], t.name)):
        end = offset + tensor.bytes
        header[tensor.name] = {"dtype": tensor.type, "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + -(-length // 8) * 8 + offset


def payload_bytes(tensors: Iterable[Stored]) -> int:
    """The tensors alone."""
    return sum(tensor.bytes for tensor in tensors)
