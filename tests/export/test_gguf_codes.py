"""What lies on a grid already goes into a GGUF file as it is: no code changes, and nothing is rounded twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.checkpoint import Checkpoint
from compress.errors import UserError
from compress.export.gguf.settings import FILE, GGUFExport, GGUFType
from compress.export.gguf.write import turned
from compress.export.verify import verify
from tests.models import save

gguf = pytest.importorskip("gguf", reason="pip install 'compress[runtimes]'")
pytest.importorskip("llama_cpp", reason="pip install 'compress[runtimes]'")

from compress.export.fresh import FreshProcess  # noqa: E402

IDS = torch.arange(3, 99)[None]


def on_grids(folder: Path, family: str, linears: str, outer: str) -> Checkpoint:
    """A tiny checkpoint in our own layout, its projections on one grid, embedding and head on another."""
    from compress.arch.linears import linear_paths
    from compress.checkpoint import write_config
    from compress.grids import grid_named
    from compress.runtime.encoded import own_config, own_layout
    from compress.stage import QUANTIZED
    from compress.writer import TensorWriter

    config, model = save(family, folder)
    conv1d = family == "gpt2"
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight" or not conv1d}
    paths = dict.fromkeys(linear_paths(config), linears)
    paths |= {name: outer for name in ("model.embed_tokens", "lm_head", "transformer.wte") if f"{name}.weight" in state}
    (folder / "model.safetensors").unlink()
    writer = TensorWriter(folder)
    for name, tensor in state.items():
        path = name.removesuffix(".weight")
        if path == name or path not in paths:
            writer.add(name, tensor)
            continue
        weight = tensor.t() if conv1d and path != "transformer.wte" else tensor
        for part, value in own_layout(name, grid_named(paths[path]).encode(weight.contiguous())).items():
            writer.add(part, value)
    writer.close()
    write_config(folder, config, {"quantization_config": own_config(paths, None)})
    return Checkpoint(folder, frozenset({QUANTIZED}))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_codes_of_a_checkpoint_are_written_unchanged(family: str, tmp_path: Path) -> None:
    """Not a bit of any block differs, and llama.cpp says what the decoded model says."""
    from safetensors.torch import load_file

    from compress.export.base import SAME_SCHEME
    from compress.export.tensors import dense_model

    checkpoint = on_grids(tmp_path / "model", family, "q4_0", "q5_1")
    settings = GGUFExport()
    settings.check(checkpoint)
    settings.write(checkpoint, tmp_path / "artifact")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    blocks = {name.removesuffix(".weight.blocks"): tensor for name, tensor in stored.items() if "blocks" in name}
    read = {t.name: t for t in gguf.GGUFReader(tmp_path / "artifact" / FILE).tensors}
    written = {name: t for name, t in read.items() if t.tensor_type.name not in ("F32", "F16")}
    assert len(written) == len(blocks) == (28 + 2 if family == "llama" else 16 + 1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA if family == "llama" else gguf.MODEL_ARCH.GPT2, 4)
    heads = {"q_proj": 4, "k_proj": 2}
    for path, tensor in blocks.items():
        part = path.rpartition(".")[2]
        expected = turned(tensor, heads[part]) if part in heads else tensor
        assert written[f"{names.get_name(path)}.weight"].data.tobytes() == expected.contiguous().numpy().tobytes(), path
    expectation = settings.expect(checkpoint, IDS, lambda given, dtype: dense_model(given, dtype or torch.float32))
    assert expectation.emulated is not None and expectation.tolerance == SAME_SCHEME
    with FreshProcess("llama_cpp", tmp_path / "artifact", 1, 128) as process:
        found = verify(process, expectation, IDS)
    assert found.verified and found.emulation is not None and found.emulation["mean_kl"] < 3e-3, found


def test_other_grids_are_not_rounded_twice(tmp_path: Path) -> None:
    checkpoint = on_grids(tmp_path / "model", "llama", "int4_g32", "int8")
    with pytest.raises(UserError, match="grid int8"):
        GGUFExport(type=GGUFType.q4_0).write(checkpoint, tmp_path / "refused")
    GGUFExport().write(checkpoint, tmp_path / "artifact")
    kinds = {t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "artifact" / FILE).tensors}
    assert kinds == {"F16", "F32"}


def test_what_f16_cannot_hold_is_written_in_f32(tmp_path: Path) -> None:
    from compress.export.gguf.write import contents, kind_of
    from compress.grids import grid_named

    grid = grid_named("nf4")
    weight = torch.randn(32, 64)
    weight[3, 5] = 3e5
    found = kind_of("it", grid.encode(weight), grid, lambda *_: GGUFType.f16, False, False)
    assert found == "F32" and bool(contents(found, grid.encode(weight), grid, False).isfinite().all())
    weight[3, 5] = 3.0
    assert kind_of("it", grid.encode(weight), grid, lambda *_: GGUFType.f16, False, False) == "F16"
