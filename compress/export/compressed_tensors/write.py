"""Writes codes and scales under the names that compressed-tensors reads, tensor by tensor.

    W8A8    <path>.weight int8 [out, in]                  .weight_scale [out, 1]         format int-quantized
    W8A16   .weight_packed int32 [out, in / 4]            .weight_scale [out, 1]         format pack-quantized
    W4A16   .weight_packed int32 [out, in / 8]            .weight_scale [out, groups]    format pack-quantized
            asymmetric: .weight_zero_point int32 [out / 8, groups], packed along the rows
            packed ones also have .weight_shape int64 [2]

Codes are packed lowest bits first and shifted to be unsigned, which is how our integer grids lie in memory already.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compress.arch.linears import linear_paths
from compress.checkpoint import PLAN, write_config
from compress.errors import UserError
from compress.export.compressed_tensors.settings import Scheme
from compress.export.tensors import delivered
from compress.grids import Encoded, Grid, Int8, Integer
from compress.grids.integer import pack_words
from compress.runtime.encoded import INPUT_ABSMAX, INT8_STATIC, INT8_TOKENS, quantization_of
from compress.writer import TensorWriter

if TYPE_CHECKING:
    from torch import Tensor

    from compress.checkpoint import Checkpoint

INT_QUANTIZED, PACK_QUANTIZED = "int-quantized", "pack-quantized"
DENSE_GRIDS = {Scheme.w8a8, Scheme.w8a16, Scheme.w4a16, Scheme.w4a16_asym}


@dataclass(frozen=True)
class Kind:
    """How a projection is written: projections of one kind make one config group."""

    grid: Int8 | Integer
    activations: str | None
    """Rounded to INT8: INT8_TOKENS, each on its own scale; INT8_STATIC, all on one; None, as they are."""

    @property
    def layout(self) -> str:
        """The format's name for it."""
        return INT_QUANTIZED if self.activations else PACK_QUANTIZED

    def group(self, targets: list[str]) -> dict[str, Any]:
        """Its entry in `config_groups`."""
        shared = {"type": "int", "dynamic": False, "observer": "minmax", "observer_kwargs": {}, "actorder": None}
        shared |= {"block_structure": None, "symmetric": True, "num_bits": 8, "strategy": "channel", "group_size": None}
        weights = dict(shared)
        if isinstance(self.grid, Integer):
            weights |= {"num_bits": self.grid.bits_per_code, "strategy": "group", "group_size": self.grid.block}
            weights["symmetric"] = self.grid.symmetric
        inputs: dict[str, Any] | None = None
        if self.activations == INT8_TOKENS:
            inputs = {**shared, "strategy": "token", "dynamic": True, "observer": None}
        elif self.activations == INT8_STATIC:
            inputs = {**shared, "strategy": "tensor"}
        return {
            "targets": targets,
            "weights": weights,
            "input_activations": inputs,
            "output_activations": None,
            "format": self.layout,
        }


def write_folder(checkpoint: Checkpoint, scheme: Scheme, group: int, folder: Path) -> None:
    """Write the checkpoint as compressed-tensors.

    Args:
        checkpoint: on integer grids, or dense.
        scheme: `auto`, or what to write.
        group: weights per scale where a dense projection becomes INT4.
        folder: where to.

    Raises:
        UserError: there is nothing on an integer grid, or it is on one that no runtime of this format runs.
    """
    folder.mkdir(parents=True)
    checkpoint.copy_sidecars(folder)
    (folder / PLAN).unlink(missing_ok=True)
    writer = TensorWriter(folder)
    kinds: dict[Kind, list[str]] = {}
    left: list[str] = []
    linears = set(linear_paths(checkpoint.config))
    dtype = getattr(torch, checkpoint.dtype_name)
    for name, value, kind in chosen(checkpoint, scheme, group):
        path = name.removesuffix(".weight")
        if kind is None:
            assert not isinstance(value, Encoded)
            writer.add(name, value.to(dtype))
            if path in linears:
                left.append(path)
            continue
        assert isinstance(value, Encoded)
        kinds.setdefault(kind, []).append(path)
        for part, tensor in stored(path, value, kind).items():
            writer.add(part, tensor)
    if not kinds:
        raise nothing_found()
    writer.close()
    write_config(folder, checkpoint.config, {"quantization_config": quantization_config(kinds, left)})


def nothing_found() -> UserError:
    """What is said where there is nothing to write."""
    return UserError(
        "the export compressed_tensors finds no weights on an INT8 or INT4 grid.",
        "Quantize on one (quant@stages.quant=int8), or have dense ones rounded: its scheme=w8a8, or w4a16.",
    )


def quantization_config(kinds: dict[Kind, list[str]], left: list[str]) -> dict[str, Any]:
    """The block of config.json.

    Args:
        kinds: with the projections of each.
        left: projections that stay dense.
    """
    groups = {
        f"group_{number}": kind.group(["Linear"] if len(kinds) == 1 else paths)
        for number, (kind, paths) in enumerate(kinds.items())
    }
    layouts = {kind.layout for kind in kinds}
    # transformers 5.24 makes room for unpacked zero points only, and stops; told to decode at once it reads them right
    asymmetric = any(isinstance(kind.grid, Integer) and not kind.grid.symmetric for kind in kinds)
    return {
        **({"dequantize": True} if asymmetric else {}),
        "quant_method": "compressed-tensors",
        "format": layouts.pop() if len(layouts) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ["lm_head", "embed_out", *left],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def chosen(checkpoint: Checkpoint, scheme: Scheme, group: int) -> Iterator[tuple[str, Tensor | Encoded, Kind | None]]:
    """Every weight as it is written: encoded with its kind, or dense with None."""
    linears = {f"{path}.weight" for path in linear_paths(checkpoint.config)}
    own = quantization_of(checkpoint.raw_config)
    activations = own["activations"] if own else INT8_TOKENS
    for name, value, grid in delivered(checkpoint):
        if isinstance(value, Encoded):
            kind = kind_of(name, grid, scheme, activations) if name in linears else None
            assert grid is not None
            yield name, (value if kind else grid.decode(value)), kind
            continue
        new = grid_for(scheme, group) if name in linears else None
        if new is None or not new.fits(value.shape):
            yield name, value, None
            continue
        yield name, new.encode(value), Kind(new, INT8_TOKENS if scheme is Scheme.w8a8 else None)


def grid_for(scheme: Scheme, group: int) -> Int8 | Integer | None:
    """The grid that dense projections are rounded to; None to leave them."""
    if scheme is Scheme.auto:
        return None
    if scheme in (Scheme.w8a8, Scheme.w8a16):
        return Int8()
    return Integer(4, group, scheme is Scheme.w4a16)


def kind_of(name: str, grid: Grid | None, scheme: Scheme, activations: str | None) -> Kind | None:
    """How codes that lie on `grid` already are written, `activations` being those of INT8 layers; None to decode.

    Raises:
        UserError: the scheme asked for is another.
    """
    eight, four = isinstance(grid, Int8), isinstance(grid, Integer) and grid.bits_per_code == 4
    fits = {
        Scheme.auto: True,
        Scheme.w8a8: eight,
        Scheme.w8a16: eight,
        Scheme.w4a16: isinstance(grid, Integer) and four and grid.symmetric,
        Scheme.w4a16_asym: isinstance(grid, Integer) and four and not grid.symmetric,
    }
    if not fits[scheme]:
        raise UserError(
            f"{name} is on the grid {grid.name if grid else 'dense'}: {scheme.value} would round it twice.",
            "Give scheme=auto, or quantize on a grid of that scheme.",
        )
    if isinstance(grid, Int8):
        forced = {Scheme.w8a16: None, Scheme.w8a8: activations or INT8_TOKENS}
        return Kind(grid, forced.get(scheme, activations))
    return Kind(grid, None) if isinstance(grid, Integer) and four else None


def stored(path: str, encoded: Encoded, kind: Kind) -> dict[str, Tensor]:
    """Tensors of one projection."""
    parts = encoded.parts
    if isinstance(kind.grid, Int8):
        scale = (parts["absmax"].float() / 127)[:, None]
        if kind.activations is not None:
            written = {f"{path}.weight": parts["codes"], f"{path}.weight_scale": scale}
            if kind.activations == INT8_STATIC:
                written[f"{path}.input_scale"] = parts[INPUT_ABSMAX].float() / 127
            return written
        packed = {"weight_packed": pack_words(parts["codes"].float(), 8), "weight_scale": scale}
    else:
        packed = {"weight_packed": parts["codes"], "weight_scale": parts["scale"].to(encoded.dtype)}
        if "zero" in parts:
            packed["weight_zero_point"] = pack_words(parts["zero"].float().t(), 4).t().contiguous()
    packed["weight_shape"] = torch.tensor(encoded.shape, dtype=torch.int64)
    return {f"{path}.{part}": tensor for part, tensor in packed.items()}
