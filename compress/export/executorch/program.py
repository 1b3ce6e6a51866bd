"""A model traced into one program: the KV cache is a buffer of fixed length, written in place at the positions given.

    allowed(query at position p, key at position t) = t <= p, and t > p - window where a layer has one

Keys beyond the last position are masked, so nothing is cleared between two texts. Query heads of a group multiply with
their one key head as it lies (repeating it, as models do, would copy the whole cache for every token).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress.quiet import quiet_loggers

ATTENTION = "compress_grouped_heads"
MASKED = torch.finfo(torch.float32).min


def grouped_attention(
    _: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    **__: Any,
) -> tuple[Tensor, None]:
    """Attention of one text.

    Args:
        query: [1, heads, n, width].
        key: [1, kv heads, context, width].
        value: as key.
        attention_mask: to add, [1, 1, n, context].
        scaling: of the products.

    Returns:
        [1, n, heads, width], and no weights.
    """
    heads, length, width = query.shape[1:]
    groups = key.shape[1]
    # length before heads of a group: in the other order the tracer cannot tell strides of one token from others
    together = query[0].transpose(0, 1).reshape(length, groups, -1, width).permute(1, 0, 2, 3)
    together = together.reshape(groups, length * (heads // groups), width)
    scores = torch.matmul(together * scaling, key[0].transpose(1, 2)).view(groups, length, heads // groups, -1)
    weights = torch.softmax(scores + attention_mask[0].transpose(0, 1), dim=-1).view(groups, together.shape[1], -1)
    out = torch.matmul(weights, value[0]).view(groups, length, heads // groups, width)
    return out.permute(1, 0, 2, 3).reshape(1, length, heads, width), None


class FixedCache:
    """What models ask of a cache: keys and values of all positions, the new ones written where they belong."""

    def __init__(self, keys: list[Tensor], values: list[Tensor], positions: Tensor) -> None:
        self.keys, self.values, self.positions = keys, values, positions

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer [1, kv heads, context, width]."""
        for held, new in ((self.keys[layer], keys), (self.values[layer], values)):
            # said in full: the runtime refuses the new values as an assignment by brackets would shape them
            torch.ops.aten.index_put_(held, [None, None, self.positions], new)
        return self.keys[layer], self.values[layer]

    def get_seq_length(self, *_: Any) -> int:
        """Not asked for where positions are given."""
        return 0


class Program(nn.Module):
    """A model with its cache inside.

    Args:
        model: of transformers, in fp32.
        layers: of them.
        kv_heads: of each layer.
        head_dim: width of a head.
        context: tokens in the cache.
    """

    def __init__(self, model: Any, layers: int, kv_heads: int, head_dim: int, context: int) -> None:
        super().__init__()
        self.model = model
        self.layers, self.context = layers, context
        for layer in range(layers):
            for part in ("keys", "values"):
                self.register_buffer(f"{part}_{layer}", torch.zeros(1, kv_heads, context, head_dim))

    def forward(self, input_ids: Tensor, cache_position: Tensor) -> Tensor:
        """[1, n] and [n] -> logits [1, n, vocab]."""
        keys, values = ([getattr(self, f"{part}_{i}") for i in range(self.layers)] for part in ("keys", "values"))
        out = self.model(
            input_ids=input_ids,
            attention_mask=self._masks(cache_position),
            position_ids=cache_position[None],
            past_key_values=FixedCache(keys, values, cache_position),
            use_cache=True,
        )
        logits: Tensor = out.logits
        return logits

    def _masks(self, positions: Tensor) -> Any:
        """To add to the scores [1, 1, n, context]: one for all layers, or one for each kind of layer."""
        config = self.model.config
        at = torch.arange(self.context)[None]
        before = at <= positions[:, None]
        window = getattr(config, "sliding_window", None)
        full = torch.where(before, 0.0, MASKED)[None, None]
        kinds = getattr(config, "layer_types", None)
        if window is None:
            return {"full_attention": full} if kinds else full
        near = torch.where(before & (at > positions[:, None] - window), 0.0, MASKED)[None, None]
        return {"full_attention": full, "sliding_attention": near} if kinds else near


def lowered(program: Program, metadata: dict[str, Any]) -> bytes:
    """The program as ExecuTorch runs it.

    Args:
        program: to trace.
        metadata: answers to what a runner asks before it runs (`get_max_context_len` ...).
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, grouped_attention)
    program.model.set_attn_implementation(ATTENTION)
    length = torch.export.Dim("length", min=1, max=program.context)
    sizes = {"input_ids": {1: length}, "cache_position": {0: length}}
    given = (torch.ones(1, 3, dtype=torch.long), torch.arange(3))
    with torch.no_grad(), quiet_loggers("executorch", "torch.utils._pytree"):
        traced = torch.export.export(program.eval(), given, dynamic_shapes=sizes, strict=False)
        edge = to_edge_transform_and_lower(
            traced,
            partitioner=[XnnpackPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
            constant_methods=metadata,
        )
        written: bytes = edge.to_executorch(ExecutorchBackendConfig(run_reinplace_pass=True)).buffer
    return written
