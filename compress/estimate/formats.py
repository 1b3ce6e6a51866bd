"""What a model of given sizes would weigh in every format people ship."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from compress.estimate.form import Form
from compress.estimate.gguf import Words, gguf_bytes
from compress.estimate.graphs import executorch_bytes, onnx_bytes
from compress.estimate.layouts import Format

FOLDERS: dict[str, Format] = {
    "int8": Format("int8"),
    "nf4, double quantization": Format("nf4"),
    "nf4": Format("nf4", double_quant=False),
    "int4, groups of 64": Format("int4", 64),
}
"""Hugging Face folders: the linears in the format, embedding and head in the model's own type."""

FILES: dict[str, tuple[str, str]] = {
    "gguf Q8_0": ("Q8_0", "Q8_0"),
    "gguf Q5_1": ("Q5_1", "Q8_0"),
    "gguf Q4_0": ("Q4_0", "Q8_0"),
    "gguf Q4_0, embedding Q5_1": ("Q4_0", "Q5_1"),
}
"""GGUF: linears, embedding and head. llama.cpp itself keeps the embedding of a Q4_0 file in Q8_0 where K-quants do not
fit; a small model's embedding is half of the file, so Q5_1 is worth training for."""

GRAPHS: dict[str, Callable[[Form, str], int]] = {
    "onnx fp32": onnx_bytes,
    "onnx int8": onnx_bytes,
    "executorch fp32": executorch_bytes,
    "executorch 8da4w": executorch_bytes,
}


def bytes_per_format(form: Form, words: Words) -> dict[str, int]:
    """Bytes on disk by name of the format: the widths of `form`, whatever it is stored as now."""
    plain = Form(form.config, form.widths, "bfloat16")
    found = {"bf16": plain.bytes, "fp32": replace(plain, dtype="float32").bytes}
    found |= {name: replace(plain, linears=linears).bytes for name, linears in FOLDERS.items()}
    found |= {name: gguf_bytes(plain, *grids, words) for name, grids in FILES.items()}
    return found | {name: count(plain, name.rpartition(" ")[2]) for name, count in GRAPHS.items()}


def rule_of_thumb(parameters: int, bits: int) -> int:
    """M = P x 4 / (32 / Q) x 1.2: bytes to serve P parameters in Q bits with a fifth on top for everything else.

    Source: the rule that model cards and GPU vendors quote (Substratus, "Calculating GPU memory for serving LLMs",
    2023), after the 20% overhead of EleutherAI's "Transformer Math 101". It counts every parameter in Q bits,
    embeddings too, and no KV cache: hence the exact count beside it.
    """
    return round(parameters * 4 / (32 / bits) * 1.2)
