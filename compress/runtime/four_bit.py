"""4-bit layers: bitsandbytes' own on our kernels, and plain ones for weights that bitsandbytes has no layer for."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from compress_kernels import embedding_4bit, linear_4bit
from compress_kernels.codes import BLOCKS
from torch import Tensor, nn

from compress.arch import adapter_for
from compress.grids import Encoded, Grid
from compress.runtime.modules import replace_module


class FourBitEmbedding(nn.Module):
    """A matrix [rows, width] in 4-bit codes, of which only the rows asked for are ever decoded.

    Attributes:
        codes: uint8 [rows, width / 2].
        scales: [rows * width / block].
        table: fp32 [16].
        offsets: fp32 as scales, or None.
        block: weights that share a scale.
        dtype: of the rows it gives.
    """

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        table: Tensor,
        block: int,
        offsets: Tensor | None = None,
        *,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = codes.shape[0], 2 * codes.shape[1]
        self.block, self.dtype = block, dtype
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("scales", scales)
        self.register_buffer("table", table)
        self.register_buffer("offsets", offsets)

    codes: Tensor
    scales: Tensor
    table: Tensor
    offsets: Tensor | None

    def forward(self, ids: Tensor) -> Tensor:
        """[...] -> [..., width]."""
        return embedding_4bit(ids, self.codes, self.scales, self.table, self.block, self.offsets, dtype=self.dtype)

    def head(self) -> FourBitLinear:
        """The tied output head: a layer on the same tensors."""
        return FourBitLinear(self.codes, self.scales, self.table, self.block, self.offsets)

    def extra_repr(self) -> str:
        """As nn.Embedding shows itself."""
        return f"{self.num_embeddings}, {self.embedding_dim}, block={self.block}"


class FourBitLinear(nn.Module):
    """A linear layer on 4-bit weights; the parts are those of FourBitEmbedding, with rows = out and width = in."""

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        table: Tensor,
        block: int,
        offsets: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape[0], 2 * codes.shape[1]
        self.block = block
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("scales", scales)
        self.register_buffer("table", table)
        self.register_buffer("offsets", offsets)
        self.register_buffer("bias", bias)

    codes: Tensor
    scales: Tensor
    table: Tensor
    offsets: Tensor | None
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the type of `x`."""
        return linear_4bit(x, self.codes, self.scales, self.table, self.block, self.offsets, self.bias)

    def extra_repr(self) -> str:
        """As nn.Linear shows itself."""
        shape = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{shape}, bias={self.bias is not None}, block={self.block}"


def put_embedding(model: Any, embedding: FourBitEmbedding) -> None:
    """Give `model` a 4-bit input embedding, and the head that goes with it where the two are tied."""
    if model.config.get_text_config().tie_word_embeddings:
        model.set_output_embeddings(embedding.head())
    model.set_input_embeddings(embedding)


def four_bit_parts(encoded: Encoded, grid: Grid) -> tuple[Tensor, Tensor, Tensor, int, Tensor | None] | None:
    """A weight [rows, width] of any grid as the 4-bit layers hold it: codes, scales, table, block, offsets.

    None if the grid has more than 16 levels, or blocks that no kernel knows.
    """
    values = torch.unique(grid.levels.float())
    if len(values) > 16 or encoded.shape[1] % 2:
        return None
    levels, scales = grid.unpack(encoded)
    block = encoded.shape[1] // scales.scale.shape[1]
    if block not in BLOCKS or block * scales.scale.shape[1] != encoded.shape[1]:
        return None
    codes = torch.searchsorted(values, levels.float().contiguous()).to(torch.uint8)
    table = torch.nn.functional.pad(values, (0, 16 - len(values)))
    offsets = None if scales.offset is None else scales.offset.float().flatten()
    return codes[:, ::2] << 4 | codes[:, 1::2], scales.scale.float().flatten(), table, block, offsets


def put_on_codes(model: Any, weights: Iterable[tuple[str, Encoded, Grid]], dtype: torch.dtype) -> None:
    """Let linear layers, embedding and head run on their 4-bit codes; what no kernel takes stays decoded.

    Args:
        model: with decoded weights.
        weights: module path, weight and grid.
        dtype: of the embedding's rows.
    """
    modules = adapter_for(model.config).modules
    for path, encoded, grid in weights:
        parts = four_bit_parts(encoded, grid)
        if parts is None:
            continue
        module = model.get_submodule(path)
        if path == modules.embedding:
            put_embedding(model, FourBitEmbedding(*parts, dtype=dtype).to(module.weight.device))
        else:
            bias = getattr(module, "bias", None)
            layer = FourBitLinear(*parts, None if bias is None else bias.data.cpu())
            replace_module(model, path, layer.to(module.weight.device))


def use_four_bit_kernels(model: nn.Module) -> None:
    """Let bitsandbytes' 4-bit layers multiply on our kernels; they stay bitsandbytes' layers for peft and for saving.

    On a CPU bitsandbytes would repack weights for AVX512-BF16 at the first forward without gradients, for good: from
    then on the gradient to the input is silently wrong, and a checkpoint saved from the model too. That is off.
    """
    found: Any = [module for module in model.modules() if is_four_bit(module)]
    if not found:
        return
    from compress.runtime.bitsandbytes_layer import KernelLinear4bit, fits

    for module in found:
        module.support_avx512bf16_for_cpu = False
        if fits(module):
            # the same object, for peft and for the weight, which points back at it: only `forward` changes
            module.__class__ = KernelLinear4bit


def use_four_bit_type(model: nn.Module, dtype: torch.dtype) -> None:
    """Let bitsandbytes' 4-bit layers compute in `dtype`, whatever the checkpoint says."""
    for layer in four_bit_layers(model):
        layer.compute_dtype = dtype


def four_bit_layers(model: nn.Module) -> list[Any]:
    """bitsandbytes' 4-bit layers."""
    return [module for module in model.modules() if is_four_bit(module)]


def is_four_bit(module: Any) -> bool:
    """Whether `module` is a bitsandbytes 4-bit layer; does not import bitsandbytes if nobody has yet."""
    if "bitsandbytes" not in sys.modules:
        return False
    from bitsandbytes.nn import Linear4bit

    return isinstance(module, Linear4bit)


def dequantized(layer: Any) -> Tensor:
    """What a bitsandbytes 4-bit layer multiplies with, fp32 [out, in] on the CPU."""
    from bitsandbytes.functional import dequantize_4bit

    weight: Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight.float().cpu()
