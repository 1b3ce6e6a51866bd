"""Sizes of ONNX folders and ExecuTorch programs: weights as they lie there, and the graph around them.

    onnx fp32           4 bytes a weight; a tied head is the embedding
    onnx int8           projections, embedding and head: codes and an fp32 step per row
    executorch fp32     4 bytes a weight; a tied head is stored again (XNNPACK lays it out by itself)
    executorch 8da4w    projections: 4 bits and a bf16 scale per group; embedding and head, again both: INT8 rows

Source: measured on exports of tiny models (tests/estimate/test_bytes.py); the layouts are those of the writers.
"""

from __future__ import annotations

from collections.abc import Callable

from compress.arch import adapter_for
from compress.arch.inventory import Parameter
from compress.estimate.form import Form
from compress.estimate.layouts import dimensions

GROUP = 32
ONNX_GRAPH, ONNX_LAYER = {"fp32": 4_000, "int8": 23_800}, {"fp32": 7_000, "int8": 12_900}
PTE_GRAPH, PTE_LAYER = {"fp32": 9_000, "8da4w": 43_000}, {"fp32": 26_000, "8da4w": 40_800}
"""Bytes of nodes, names and small constants (of the rotation too): once, and for every layer."""


def onnx_bytes(form: Form, kind: str) -> int:
    """Graph and weights; `kind` is fp32 or int8."""

    def weight(p: Parameter, rows: int) -> int:
        quantized = kind == "int8" and p.role != "other" and len(p.shape) == 2
        return p.numel + 4 * rows if quantized else 4 * p.numel

    return ONNX_GRAPH[kind] + form.widths.layers * ONNX_LAYER[kind] + _weights(form, weight)


def executorch_bytes(form: Form, kind: str) -> int:
    """The program; `kind` is fp32 or 8da4w."""

    def weight(p: Parameter, rows: int) -> int:
        if kind == "fp32" or len(p.shape) < 2 or p.role == "other":
            size = 4 * p.numel
        elif p.role == "linear" and (p.numel // rows) % GROUP == 0:
            size = p.numel // 2 + 2 * (p.numel // GROUP)
        else:
            size = p.numel + 4 * rows
        return size * (2 if p.role == "embedding" and form.shape.tied else 1)

    return PTE_GRAPH[kind] + form.widths.layers * PTE_LAYER[kind] + _weights(form, weight)


def _weights(form: Form, weight: Callable[[Parameter, int], int]) -> int:
    """Sum of `weight(parameter, its output channels)`."""
    conv1d = adapter_for(form.config).modules.conv1d
    return sum(
        weight(p, dimensions(p, conv1d and p.role == "linear")[0] if len(p.shape) == 2 else p.shape[0])
        for p in form.parameters
    )
