"""Quantizes one model by a library other than ours, in that library's own environment; imports nothing of ours.

    python quantize_peer.py METHOD --model DIR --windows FILE --out DIR

METHOD is a key of `METHODS`; FILE holds the calibration tokens ("windows", int64 [n, length]) in safetensors; DIR gets
a checkpoint that transformers loads, in the library's own format where that is one, else dense with the values its
codes stand for, and `measured.json`:

    seconds       from the model's folder to quantized weights; imports and the dense copy do not count
    activations   "int8_token" if a dense copy's linear layers are to round their inputs, a scale a token; else null
    versions      of the library and torch
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from tables import emulates_bf16
from torch import Tensor, nn


class Job(NamedTuple):
    """What a method is given."""

    model: Path
    windows: Tensor
    out: Path


class Done(NamedTuple):
    """What it has done."""

    seconds: float
    packages: tuple[str, ...]
    activations: str | None = None


def compute_type() -> torch.dtype:
    """bf16; fp32 on a processor that would emulate it, a hundred times slower: no library could show what it does."""
    return torch.float32 if emulates_bf16() else torch.bfloat16


def load(folder: Path, **options: Any) -> Any:
    """The model in the type that this processor computes in."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=compute_type(), **options).eval()


def save_dense(job: Job, weights: dict[str, Tensor]) -> None:
    """The original model with other values for some of its linear layers, by module path."""
    model = load(job.model)
    with torch.no_grad():
        for path, weight in weights.items():
            model.get_submodule(path).weight.copy_(weight)
    model.save_pretrained(job.out)


def decoder_linears(model: nn.Module) -> dict[str, Any]:
    """Modules with a place for a weight inside the decoder layers."""
    return {n: m for n, m in model.named_modules() if ".layers." in f".{n}" and n.endswith("_proj")}


def as_dense(layer: nn.Module, columns: int) -> Tensor:
    """The weight [out, in] of a linear layer, whatever it is stored as: its product with the identity."""
    with torch.no_grad():
        return torch.as_tensor(layer(torch.eye(columns, dtype=compute_type()))).t().contiguous()


def bitsandbytes_nf4(job: Job) -> Done:
    """NF4 in blocks of 64 with double quantization."""
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_type(),
    )
    begin = time.perf_counter()
    model = load(job.model, quantization_config=settings, device_map="cpu")
    seconds = time.perf_counter() - begin
    model.save_pretrained(job.out)
    return Done(seconds, ("bitsandbytes",))


def torchao_int4(job: Job) -> Done:
    """Weight-only INT4 in groups of 64, symmetric, scales by half-quadratic optimization; needs no text."""
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm

    begin = time.perf_counter()
    model = load(job.model)
    paths = set(decoder_linears(model))
    settings = IntxWeightOnlyConfig(
        weight_dtype=torch.int4,  # type: ignore[attr-defined]  # a type that the stubs of torch lack
        granularity=PerGroup(64),
        intx_choose_qparams_algorithm=IntxChooseQParamsAlgorithm.HQQ_SCALE_ONLY,
    )
    quantize_(model, settings, filter_fn=lambda _, path: path in paths)
    seconds = time.perf_counter() - begin
    save_dense(job, {path: layer.weight.dequantize() for path, layer in decoder_linears(model).items()})
    return Done(seconds, ("torchao",))


def torchao_int8_dynamic(job: Job) -> Done:
    """INT8 weights per channel, INT8 activations per token."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    begin = time.perf_counter()
    model = load(job.model)
    paths = set(decoder_linears(model))
    quantize_(model, Int8DynamicActivationInt8WeightConfig(), filter_fn=lambda _, path: path in paths)
    seconds = time.perf_counter() - begin
    save_dense(job, {path: layer.weight.dequantize() for path, layer in decoder_linears(model).items()})
    return Done(seconds, ("torchao",), "int8_token")


def llmcompressor(job: Job, scheme: dict[str, Any]) -> Done:
    """GPTQ; the result is compressed-tensors."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier

    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in job.windows.tolist()]
    begin = time.perf_counter()
    model = load(job.model)
    oneshot(
        model=model,
        dataset=Dataset.from_list(rows),
        recipe=GPTQModifier(ignore=["lm_head"], **scheme),
        max_seq_length=job.windows.shape[1],
        num_calibration_samples=len(job.windows),
    )
    seconds = time.perf_counter() - begin
    model.save_pretrained(job.out, save_compressed=True)
    return Done(seconds, ("llmcompressor", "compressed-tensors"))


def llmcompressor_int4(job: Job) -> Done:
    """GPTQ, INT4 symmetric in groups of 64."""
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
    return llmcompressor(job, {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}})


def llmcompressor_w8a8(job: Job) -> Done:
    """GPTQ, INT8 weights per channel, INT8 activations per token."""
    return llmcompressor(job, {"targets": "Linear", "scheme": "W8A8"})


def hqq_int4(job: Job) -> Done:
    """Half-quadratic quantization, 4 bits in groups of 64; needs no text."""
    from hqq.core.quantize import BaseQuantizeConfig
    from hqq.models.hf.base import AutoHQQHFModel

    begin = time.perf_counter()
    model = load(job.model)
    settings = BaseQuantizeConfig(nbits=4, group_size=64)
    AutoHQQHFModel.quantize_model(model, quant_config=settings, compute_dtype=compute_type(), device="cpu")
    seconds = time.perf_counter() - begin
    layers = decoder_linears(model)
    save_dense(job, {path: layer.dequantize() for path, layer in layers.items()})
    return Done(seconds, ("hqq",))


def autoround_int4(job: Job) -> Done:
    """Rounding learned by signed gradients, INT4 symmetric in groups of 64."""
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    begin = time.perf_counter()
    quantizer = AutoRound(
        load(job.model),
        AutoTokenizer.from_pretrained(job.model),
        bits=4,
        group_size=64,
        sym=True,
        dataset=[{"input_ids": row[None]} for row in job.windows],
        nsamples=len(job.windows),
        seqlen=job.windows.shape[1],
        device_map="cpu",
    )
    model, _ = quantizer.quantize()
    seconds = time.perf_counter() - begin
    layers = decoder_linears(model)
    save_dense(job, {path: layer.weight for path, layer in layers.items()})
    return Done(seconds, ("auto-round",))


def gptqmodel_int4(job: Job) -> Done:
    """GPTQ, INT4 symmetric in groups of 64."""
    # on two cores it takes one worker, and then wants two
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, os.cpu_count() or 1)))
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in job.windows.tolist()]
    native = job.out / "native"
    begin = time.perf_counter()
    settings = QuantizeConfig(bits=4, group_size=64, sym=True, device="cpu")
    model = GPTQModel.load(str(job.model), settings)
    model.quantize(rows, batch_size=1)
    seconds = time.perf_counter() - begin
    model.save(str(native))
    loaded = GPTQModel.load(str(native), device="cpu", backend=BACKEND.TORCH).model
    layers = decoder_linears(loaded)
    save_dense(job, {path: as_dense(layer, layer.in_features) for path, layer in layers.items()})
    return Done(seconds, ("gptqmodel",))


METHODS: dict[str, Callable[[Job], Done]] = {
    "bitsandbytes_nf4": bitsandbytes_nf4,
    "torchao_int4": torchao_int4,
    "torchao_int8_dynamic": torchao_int8_dynamic,
    "llmcompressor_int4": llmcompressor_int4,
    "llmcompressor_w8a8": llmcompressor_w8a8,
    "hqq_int4": hqq_int4,
    "autoround_int4": autoround_int4,
    "gptqmodel_int4": gptqmodel_int4,
}


def main() -> None:
    """Quantize, and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=list(METHODS))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--windows", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    done = METHODS[options.method](Job(options.model, load_file(options.windows)["windows"], options.out))
    found = {
        "seconds": done.seconds,
        "activations": done.activations,
        "versions": "; ".join(f"{package} {version(package)}" for package in (*done.packages, "torch")),
    }
    (options.out / "measured.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
