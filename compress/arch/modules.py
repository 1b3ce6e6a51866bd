"""Where the parts of a model are: dotted paths as in `AutoModelForCausalLM(...).named_modules()`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fold:
    """An edge along which a scale of each channel can move: whatever `source` puts out, divided, `targets` multiply.

    source: a norm, or a linear layer whose outputs reach the targets' inputs through nothing but products with other
    tensors and sums over positions. `heads`: the targets read heads that share the source's KV groups.
    """

    source: str
    targets: tuple[str, ...]
    heads: bool = False


@dataclass(frozen=True)
class Modules:
    """Module paths of one family. Names within a layer are given relative to it; the methods complete them."""

    stack: str  # the decoder without its head: "model"
    layers: str  # the ModuleList of layers: "model.layers"
    embedding: str
    final_norm: str
    head: str  # as transformers >= 5.23 names it; `model.get_output_embeddings()` finds it in any version
    attention: tuple[str, ...]  # linears of the attention, in the order of computation
    mlp: tuple[str, ...]  # linears of the MLP, in the order of computation; the last one reads the neurons
    residual_norms: tuple[str, ...]  # norms that read the residual stream, in the order of computation
    positions: str | None = None  # learned position embedding, where there is one
    folds: tuple[Fold, ...] = ()  # exact ones only: none through GELU or a norm on heads
    conv1d: bool = False  # linears are transformers' Conv1D: weight [in, out], the transpose of nn.Linear's

    def layer(self, index: int) -> str:
        """Path of one layer."""
        return f"{self.layers}.{index}"

    def linears(self, index: int) -> tuple[str, ...]:
        """Every projection of a layer's attention and MLP: what is quantized and what adapters sit on."""
        return tuple(f"{self.layer(index)}.{name}" for name in (*self.attention, *self.mlp))

    def neurons(self, index: int) -> str:
        """The projection whose *input* [..., mlp] is the activation of the MLP's neurons."""
        return f"{self.layer(index)}.{self.mlp[-1]}"

    def head_outputs(self, index: int) -> str:
        """The projection whose *input* [..., heads * head_dim] is all heads' outputs, one after the other."""
        return f"{self.layer(index)}.{self.attention[-1]}"

    def norms(self, index: int) -> tuple[str, ...]:
        """The norms of a layer that read the residual stream [..., hidden]."""
        return tuple(f"{self.layer(index)}.{name}" for name in self.residual_norms)
