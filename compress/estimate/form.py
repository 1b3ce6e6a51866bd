"""A model at one point of the chain, as numbers: how wide it is, how its weights are stored, what lies beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from compress.arch import Shape, Widths, adapter_for
from compress.arch.base import Config
from compress.arch.inventory import Parameter, inventory
from compress.estimate.grids import BudgetFormat, OwnFormat
from compress.estimate.layouts import DENSE, Format, Stored, file_bytes, payload_bytes

Layout = Format | OwnFormat | BudgetFormat


@dataclass(frozen=True)
class Form:
    """Sizes of a model and of the files it would be.

    Attributes:
        config: of the dense model it was cut from.
        widths: what is left of it.
        dtype: of what is not quantized, as config.json names it.
        linears: format of the projections of attention and MLP.
        embeddings: format of embedding and head.
        rank: of the adapters beside the linears; 0 for none.
    """

    config: Config
    widths: Widths
    dtype: str = "bfloat16"
    linears: Layout = DENSE
    embeddings: Layout = DENSE
    rank: int = 0

    @cached_property
    def shape(self) -> Shape:
        """Of the dense model; what pruning changes is in `widths`."""
        return adapter_for(self.config).shape(self.config)

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """All of the dense model of these widths."""
        return tuple(inventory(self.config, self.widths))

    def count(self, *roles: str) -> int:
        """Parameters of these roles; all without any."""
        return sum(p.numel for p in self.parameters if not roles or p.role in roles)

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.widths.all_query_heads

    @property
    def queries(self) -> int:
        """Width of all query heads."""
        return self.heads * self.shape.head_dim

    @property
    def keys(self) -> int:
        """Width of all key heads."""
        return self.widths.heads * self.shape.head_dim

    @cached_property
    def non_embedding(self) -> int:
        """Parameters of the layers and the final norm."""
        return adapter_for(self.config).non_embedding_parameters(self.config, self.widths)

    @property
    def adapters(self) -> int:
        """Parameters of the adapters: rank x (in + out) for every linear."""
        return sum(self.rank * sum(p.shape) for p in self.parameters if p.role == "linear" and len(p.shape) == 2)

    @cached_property
    def layer(self) -> tuple[Parameter, ...]:
        """The parameters of one layer."""
        prefix = adapter_for(self.config).modules.layer(0) + "."
        return tuple(p for p in self.parameters if p.name.startswith(prefix))

    def linears_of_a_layer(self) -> Iterator[tuple[int, int]]:
        """(out, in) of every projection of one layer."""
        conv1d = adapter_for(self.config).modules.conv1d
        for p in self.layer:
            if p.role == "linear" and len(p.shape) == 2:
                yield (p.shape[1], p.shape[0]) if conv1d else (p.shape[0], p.shape[1])

    @cached_property
    def stored(self) -> tuple[Stored, ...]:
        """Every tensor of the base's files."""
        return tuple(tensor for p in self.parameters for tensor in self._stored_as(p))

    def _stored_as(self, p: Parameter) -> list[Stored]:
        if p.role == "linear":
            return self.linears.stored(p, self.dtype, adapter_for(self.config).modules.conv1d)
        return (self.embeddings if p.role in ("embedding", "head") else DENSE).stored(p, self.dtype)

    @property
    def bytes_for_a_token(self) -> int:
        """Of the files, those that writing a token reads: a tied embedding is the head too, another gives one row."""
        looked_up = [] if self.shape.tied else [p for p in self.parameters if p.role == "embedding"]
        return self.bytes - payload_bytes(tensor for p in looked_up for tensor in self._stored_as(p))

    def adapter_tensors(self) -> Iterator[Stored]:
        """What peft stores beside the base, in bf16."""
        conv1d = adapter_for(self.config).modules.conv1d
        for p in self.parameters:
            if self.rank and p.role == "linear" and len(p.shape) == 2:
                out, width = (p.shape[1], p.shape[0]) if conv1d else p.shape
                module = "base_model.model." + p.name.removesuffix(".weight")
                yield Stored(f"{module}.lora_A.weight", "BF16", (self.rank, width))
                yield Stored(f"{module}.lora_B.weight", "BF16", (out, self.rank))

    @cached_property
    def bytes(self) -> int:
        """Size of the weight files, the adapter's too."""
        adapters = list(self.adapter_tensors())
        return file_bytes(self.stored) + (file_bytes(adapters) if adapters else 0)
