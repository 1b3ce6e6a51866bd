"""Bytes on disk against what is really written, format by format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from compress.arch import adapter_for
from compress.arch.inventory import Parameter
from compress.arch.plain import read_plain_config
from compress.estimate.form import Form
from compress.estimate.formats import FILES, FOLDERS, GRAPHS, bytes_per_format, rule_of_thumb
from compress.estimate.gguf import Words, gguf_bytes, read_words, tensor_bytes
from compress.estimate.grids import OwnFormat, block_of_grid, laid_out
from compress.estimate.layouts import GGUF_BLOCK_BYTES, Format, Stored, file_bytes
from tests.models import VARIANTS, save


def form_of(folder: Path, dtype: str = "float32") -> Form:
    config = read_plain_config(folder)
    return Form(config, adapter_for(config).shape(config).widths, dtype)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_dense_file_to_the_byte(name: str, tmp_path: Path) -> None:
    save(name, tmp_path, tokenizer=False)
    # a checkpoint may spell the head differently
    spelling = 8 if name.startswith("gpt_neox") else 0
    assert abs(form_of(tmp_path).bytes - (tmp_path / "model.safetensors").stat().st_size) <= spelling


@pytest.mark.parametrize("out, width", [(64, 64), (96, 192), (128, 1024)])
@pytest.mark.parametrize("kind, double", [("nf4", True), ("nf4", False), ("fp4", True), ("int8", False)])
def test_a_quantized_weight_as_the_pipeline_stores_it(
    kind: str, double: bool, out: int, width: int, tmp_path: Path
) -> None:
    from compress.grids import FourBit, Int8
    from compress.runtime.layout import BitsAndBytes4bit, BitsAndBytesInt8

    layout = BitsAndBytesInt8() if kind == "int8" else BitsAndBytes4bit()
    grid = Int8() if kind == "int8" else FourBit(kind, 64, double)  # type: ignore[arg-type]
    weight = torch.randn(out, width, generator=torch.Generator().manual_seed(0)).bfloat16()
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = layout.on_disk(name, grid.encode(weight), grid)
    stored = Format(kind, 64, double).stored(Parameter(name, (out, width), "linear"), "bfloat16")
    names = {"torch.uint8": "U8", "torch.int8": "I8", "torch.float32": "F32"}
    found = {n: (names[str(t.dtype)], tuple(t.shape)) for n, t in tensors.items()}
    said = {s.name: (s.type, s.shape) for s in stored}
    state = f"{name}.quant_state.bitsandbytes__{kind}"
    # the offset is written with as many digits as it needs
    assert abs(found.pop(state, ("", (0,)))[1][0] - said.pop(state, ("", (0,)))[1][0]) <= 8
    assert found == said
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "w.safetensors", metadata={"format": "pt"})
    assert file_bytes(stored) == pytest.approx((tmp_path / "w.safetensors").stat().st_size, abs=24)


@pytest.mark.parametrize("out, width", [(64, 64), (48, 64), (64, 100), (33, 33), (32, 128)])
@pytest.mark.parametrize("block", [32, 64, 128])
def test_what_stays_dense_is_what_the_pipeline_leaves_dense(out: int, width: int, block: int) -> None:
    from compress.grids import FourBit

    assert Format("nf4", block).fits(out, width) == FourBit("nf4", block).fits((out, width))


@pytest.mark.parametrize("out, width", [(64, 128), (32, 256), (96, 384)])
def test_every_grid_in_our_own_layout(out: int, width: int) -> None:
    from compress.grids import GRIDS
    from compress.runtime.encoded import own_layout

    weight = torch.randn(out, width, generator=torch.Generator().manual_seed(0)).bfloat16()
    types = {"uint8": "U8", "int8": "I8", "int32": "I32", "int64": "I64", "bfloat16": "BF16", "float32": "F32"}
    for name, grid in GRIDS.items():
        tensors = own_layout("a.weight", grid.encode(weight))
        found = {n: (types[str(t.dtype).removeprefix("torch.")], tuple(t.shape)) for n, t in tensors.items()}
        said = OwnFormat(name).stored(Parameter("a.weight", (out, width), "linear"), "bfloat16")
        assert found == {s.name: (s.type, s.shape) for s in said}, name
        assert block_of_grid(name) == grid.block, name
        for shape in ((64, 32), (48, 64), (64, 100), (33, 33), (32, 128)):
            assert OwnFormat(name).fits(*shape) == grid.fits(shape), (name, shape)


@pytest.mark.parametrize("activations", [None, "int8_token"])
def test_layouts_are_those_the_pipeline_chooses(activations: str | None) -> None:
    from compress.grids import GRIDS
    from compress.runtime.layout import Own, layout_for

    for name, grid in GRIDS.items():
        for paths in ({"a"}, {"a", "embedding"}):
            own = isinstance(layout_for(dict.fromkeys(paths, grid), {"a"}, activations), Own)
            said = laid_out(name, paths == {"a"}, activations is not None)
            assert isinstance(said, OwnFormat) == own, (name, paths)


def test_transposed_linears_are_stored_as_out_by_in() -> None:
    stored = Format("int8").stored(Parameter("h.0.mlp.c_fc.weight", (64, 128), "linear"), "float32", transposed=True)
    assert stored[0].shape == (128, 64) and stored[1].shape == (128,)


@pytest.mark.parametrize("grid", GGUF_BLOCK_BYTES)
def test_gguf_blocks_are_those_of_the_library(grid: str) -> None:
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[grid]
    assert gguf.GGML_QUANT_SIZES[kind] == (32, GGUF_BLOCK_BYTES[grid])
    assert tensor_bytes((64, 96), grid) == 64 * 3 * GGUF_BLOCK_BYTES[grid]
    # no whole blocks: 16 bits; vectors: 32
    assert tensor_bytes((64, 33), grid) == 64 * 33 * 2 and tensor_bytes((64,), grid) == 256


def test_a_gguf_file_by_the_library(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    import numpy as np

    save("llama", tmp_path)
    form = form_of(tmp_path)
    words = read_words(tmp_path, form.shape.vocab)
    tokens = [f"{i:06d}" for i in range(form.shape.vocab)]
    words = replace(words, count=len(tokens), text=6 * len(tokens), merges=0, merge_text=0)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    for p in form.parameters:
        data = np.ones(p.shape, np.float32)
        q8 = gguf.GGMLQuantizationType.Q8_0
        if len(p.shape) == 2:
            writer.add_tensor(p.name, gguf.quants.quantize(data, q8), raw_dtype=q8)
        else:
            writer.add_tensor(p.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    said = gguf_bytes(form, "Q8_0", "Q8_0", words)
    assert said == pytest.approx((tmp_path / "m.gguf").stat().st_size, abs=2600)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "executorch" in name else ()) for name in GRAPHS]
)
def test_a_graph_within_a_hundredth_of_what_is_written(name: str, tmp_path: Path) -> None:
    from compress.checkpoint import Checkpoint
    from compress.export.base import Export
    from compress.export.executorch.settings import ExecutorchExport, ExecutorchType
    from compress.export.onnx.settings import OnnxExport, OnnxType
    from compress.stage import DENSE

    what, kind = name.split()
    for module in ("onnx", "onnxscript") if what == "onnx" else ("executorch", "torchao"):
        pytest.importorskip(module, reason="pip install 'compress[runtimes,executorch]'")
    export: Export = OnnxExport(type=OnnxType(kind)) if what == "onnx" else ExecutorchExport(type=ExecutorchType(kind))
    save("llama-tied", tmp_path / "model", hidden_size=512, head_dim=128, intermediate_size=1024, num_hidden_layers=2)
    export.write(Checkpoint(tmp_path / "model", frozenset({DENSE})), tmp_path / "artifact")
    written = sum(file.stat().st_size for file in export.weight_files(tmp_path / "artifact"))
    assert GRAPHS[name](form_of(tmp_path / "model"), kind) == pytest.approx(written, rel=0.01)


def test_words_are_counted_from_the_tokenizer(tmp_path: Path) -> None:
    save("llama", tmp_path)
    words = read_words(tmp_path, 320)
    # 256 bytes and 3 special tokens are there before any merge
    assert words.count >= 256 and words.merges == words.count - 259 and words.text > words.count
    assert read_words(None, 1000) == Words(1000, 6000, 1000, 8000)


def test_formats_order_by_size_and_keep_their_bits(tmp_path: Path) -> None:
    save("llama", tmp_path, hidden_size=256, intermediate_size=512, head_dim=64)
    form = form_of(tmp_path)
    found = bytes_per_format(form, Words(320, 2000))
    assert set(found) == {"bf16", "fp32", *FOLDERS, *FILES, *GRAPHS}
    assert found["fp32"] > found["bf16"] > found["int8"] > found["nf4"] > found["nf4, double quantization"]
    assert found["gguf Q8_0"] > found["gguf Q5_1"] > found["gguf Q4_0"] > found["gguf Q4_0, embedding Q5_1"]
    assert found["fp32"] / form.count() == pytest.approx(4, rel=0.01)


def test_adapters_are_counted_as_peft_has_them(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config, model = save("llama", tmp_path, tokenizer=False)
    del config
    form = replace(form_of(tmp_path), rank=4)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=names))
    assert form.adapters == sum(p.numel() for n, p in adapted.named_parameters() if "lora_" in n)
    adapted.save_pretrained(tmp_path / "adapter")
    written = (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    # peft wrote fp32 here, the pipeline writes bf16
    fp32 = [Stored(s.name, "F32", s.shape) for s in form.adapter_tensors()]
    assert file_bytes(fp32) == pytest.approx(written, rel=0.002)


def test_the_rule_of_thumb() -> None:
    # 70 B in 16 bits: 168 GB
    assert rule_of_thumb(70_000_000_000, 16) == 168_000_000_000
    assert rule_of_thumb(7_000_000_000, 4) == 4_200_000_000
