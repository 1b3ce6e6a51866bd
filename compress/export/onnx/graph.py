"""A model traced once, cache included, into one ONNX graph (torch.export, then torch's own exporter)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress.quiet import quiet_loggers

OPSET = 20


class WithCache(nn.Module):
    """The model as a function of flat tensors: the cache goes in and comes out as keys and values, layer by layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor) -> Any:
        """Logits [batch, length, vocab] and the new cache."""
        from transformers import DynamicCache

        # without a config every layer keeps all: where a layer has a window, its mask says so
        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return (out.logits, *(t for layer in out.past_key_values.layers for t in (layer.keys, layer.values)))


def traced(model: nn.Module, layers: int, kv_heads: int, head_dim: int) -> Any:
    """An ONNX program with batch, length and cache of any size.

    Args:
        model: of transformers, in fp32.
        layers: of them, each has keys and values.
        kv_heads: heads of a layer's cache.
        head_dim: width of each.
    """
    batch, length, cached = 2, 3, 5
    ids = torch.ones(batch, length, dtype=torch.long)
    mask = torch.ones(batch, cached + length, dtype=torch.long)
    mask[0, :2] = 0  # with nothing masked the exporter drops the mask
    positions = torch.arange(cached, cached + length).expand(batch, -1).contiguous()
    past = tuple(torch.zeros(batch, kv_heads, cached, head_dim) for _ in range(2 * layers))
    names = [f"{{}}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    shapes = (
        {0: "batch", 1: "length"},
        {0: "batch", 1: "total"},
        {0: "batch", 1: "length"},
        tuple({0: "batch", 2: "cached"} for _ in past),
    )
    # that sizes of the same name are the same size, and that torchvision is not there
    with torch.no_grad(), quiet_loggers("torch.onnx"):
        program: Any = torch.onnx.export(
            WithCache(model).eval(),
            (ids, mask, positions, *past),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=["input_ids", "attention_mask", "position_ids", *(name.format("past") for name in names)],
            output_names=["logits", *(name.format("present") for name in names)],
            opset_version=OPSET,
            verbose=False,
            optimize=False,
        )
    _simplify(program.model)
    _without_traces(program)
    return program


def _simplify(model: Any) -> None:
    """What torch's own `optimize` does, without its rewriting: that takes time quadratic in the number of nodes (115 s
    of 221 for sixteen layers), and onnxruntime fuses what it wants to when it loads the graph.
    """
    from onnx_ir.passes import PassManager, common
    from onnxscript.optimizer import fold_constants

    common.InlinePass()(model)
    for _ in range(2):
        fold_constants(model, onnx_shape_inference=True)
        common.RemoveUnusedNodesPass()(model)
    PassManager(
        [
            common.RemoveUnusedOpsetsPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.LiftSubgraphInitializersToMainGraphPass(),
            common.DeduplicateInitializersPass(),
            common.CommonSubexpressionEliminationPass(),
            common.OutputFixPass(),
            common.NameFixPass(),
        ]
    )(model)


def _without_traces(program: Any) -> None:
    """Remove where in the source every node comes from: it would be half of the file, and differ between machines."""
    graph = program.model.graph
    program.model.metadata_props.clear()
    graph.metadata_props.clear()
    kept = {id(value) for value in (*graph.inputs, *graph.outputs)}
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if id(value) not in kept:
                value.shape = value.type = None
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
