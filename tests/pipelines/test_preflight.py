"""mode=preflight runs everything on a small twin, names the stage that fails, and leaves nothing behind."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import compress
from compress.arch import Widths, adapter_for
from compress.command import compose
from compress.config import build
from compress.errors import UserError
from compress.estimate.subject import subject_of
from compress.preflight import LAYERS, SMALL, make_twin, narrowed, relative, shrunk
from compress.prune.size import dense_bytes
from compress.source import HuggingFaceModel
from tests.models import save
from tests.pipelines.helpers import tiny_run


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders go: none of ours may be left (torch keeps one of its own)."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def big(folder: Path, **more: Any) -> Path:
    """A folder with config and tokenizer and no weights."""
    save("llama", folder, num_hidden_layers=6, **more)
    (folder / "model.safetensors").unlink()
    return folder


# one of every kind of chain: test_every_pipeline.py runs all presets whole
@pytest.mark.parametrize(
    "name", ["prune_distill", "prune_iterative", "prune_search", "qat_q4_0", "mixed", "int8_smooth"]
)
def test_pipelines_pass_and_leave_nothing(
    name: str, text_file: Path, tmp_path: Path, cache: Path, temporary: Path
) -> None:
    model = big(tmp_path / "model")
    report = compress.run(
        tiny_run(name, model, text_file, tmp_path / "out", "mode=preflight", "train.tokens=100000000")
    )
    assert report["status"] == 0 and "nothing was kept" in report["message"]
    assert not (tmp_path / "out").exists() and not list(temporary.glob("compress*"))
    assert not (cache / "store").exists()


@pytest.mark.slow
def test_every_format_passes(text_file: Path, tmp_path: Path, cache: Path, temporary: Path) -> None:
    formats = {
        "gguf": ("gguf", "llama_cpp"),
        "compressed_tensors": ("compressed_tensors",),
        "onnx": ("onnx", "onnxscript", "onnxruntime"),
        "executorch": ("executorch", "torchao"),
    }
    for module in sum(formats.values(), ()):
        pytest.importorskip(module, reason="pip install 'compress[runtimes,executorch]'")
    more = [f"+export@export.{name}={name}" for name in formats]
    more += ["export.compressed_tensors.scheme=w8a8", "export.gguf.type=q8_0", "export.onnx.type=int8"]
    more += ["export.executorch.type=8da4w", "export.executorch.context=64", "mode=preflight"]
    begin = time.monotonic()
    told = compress.run(tiny_run("prune_only", big(tmp_path / "model"), text_file, tmp_path / "out", *more))
    assert told["status"] == 0 and "5 exports" in told["message"]
    assert time.monotonic() - begin < 240


def test_what_fails_is_named(text_file: Path, tmp_path: Path, cache: Path, temporary: Path, monkeypatch: Any) -> None:
    from compress.quant.stage import NF4

    def broken(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(NF4, "run", broken)
    model = big(tmp_path / "model")
    with pytest.raises(UserError, match=r"stage 'quant' fails: RuntimeError: no such kernel"):
        compress.run(tiny_run("prune_distill", model, text_file, tmp_path / "out", "mode=preflight"))
    assert not list(temporary.glob("compress*"))


def test_a_target_the_real_model_cannot_meet_is_refused(text_file: Path, tmp_path: Path, cache: Path) -> None:
    model = big(tmp_path / "model")
    more = ("mode=preflight", "stages.prune.keep=null", "stages.prune.heads=0.3")
    with pytest.raises(UserError, match="heads"):
        compress.run(tiny_run("prune_only", model, text_file, tmp_path / "out", *more))


def test_the_twin_has_the_layers_a_cut_needs(tmp_path: Path, cache: Path) -> None:
    model = big(tmp_path / "model")
    plain = build(compose(["+pipeline=nf4"]))
    shallow = make_twin(plain, HuggingFaceModel(str(model)), tmp_path / "shallow")
    assert json.loads((shallow / "config.json").read_text())["num_hidden_layers"] == LAYERS
    # of two layers a sixth cannot go
    cut = build(compose(["+pipeline=prune_only", "stages.prune.keep=null", "stages.prune.layers=0.83"]))
    deep = make_twin(cut, HuggingFaceModel(str(model)), tmp_path / "deep")
    assert json.loads((deep / "config.json").read_text())["num_hidden_layers"] > LAYERS
    assert (deep / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()


def test_a_budget_of_bytes_is_tried_on_a_small_twin(tmp_path: Path, cache: Path) -> None:
    """No narrow twin takes as many bytes as the model's budget: the same fraction of the twin is cut."""
    model = big(tmp_path / "model")
    source = HuggingFaceModel(str(model))
    read = subject_of(source).config
    whole = dense_bytes(read, adapter_for(read).shape(read).widths)
    config = build(
        compose(["+pipeline=prune_only", f"stages.prune.bytes={whole * 9 // 10}", "stages.prune.multiple=8"])
    )
    asked = {name: relative(stage, read) for name, stage in config.stages.items()}
    assert asked["prune"].bytes is None and 0.5 < asked["prune"].keep < 0.9
    folder = make_twin(replace(config, stages=asked), source, tmp_path / "twin")
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == LAYERS


def test_a_latency_is_not_measured_on_a_twin(tmp_path: Path, cache: Path) -> None:
    """Most of a small twin's time is its head: half the time per token could not be reached."""
    read = subject_of(HuggingFaceModel(str(big(tmp_path / "model")))).config
    config = build(compose(["+pipeline=prune_search", "stages.prune.prune.latency=0.5"]))
    asked = relative(config.stages["prune"], read).prune
    assert asked.latency is None and 0.3 < asked.keep < 0.7


@pytest.mark.parametrize("size", [576, 1536, 8192, 28672, 4864, 100, 151, 1000])
@pytest.mark.parametrize("most", [64, 512, 1024])
def test_a_narrow_twin_divides_as_the_model_does(size: int, most: int) -> None:
    small = narrowed(size, most)
    assert small <= size and (small <= most or size & -size > most or small == size)
    for block in (2, 4, 8, 16, 32, 64, 128):
        assert (small % block == 0) == (size % block == 0) or small == size


def test_amounts_of_stages_that_do_not_exist_yet_become_small() -> None:
    @dataclass
    class Inner:
        max_steps: int = 100_000
        rate: float = 3e-4

    @dataclass
    class New:
        calibration_tokens: int = 65536
        window: int = 2048
        block: int = 64
        enabled: bool = True
        inner: Inner = field(default_factory=Inner)

    small = shrunk({"a": New()})["a"]
    assert small.calibration_tokens == SMALL["calibration_tokens"] and small.window == SMALL["window"]
    assert small.inner.max_steps == SMALL["steps"] and small.inner.rate == 3e-4
    assert (
        small.block == 64 and small.enabled is True and {f.name for f in fields(small)} == {f.name for f in fields(New)}
    )


def test_nothing_of_the_given_config_is_changed() -> None:
    config = build(compose(["+pipeline=prune_distill"]))
    small = shrunk(config)
    assert small.evaluate.tokens == 256 and small.own_text.length == 64 and small.train.tokens == SMALL["tokens"]
    config.evaluate.tokens = 128
    assert shrunk(config).evaluate.tokens == 128
    assert config.train.tokens == 16_000 and config.stages["distill"].train.length == 256


def test_sizes_are_tried_from_small_to_whole() -> None:
    from compress.preflight import _sizes

    full = Widths(layers=5, mlp=4096, heads=8, hidden=2048, query_heads=1)
    tried = list(_sizes(full))
    assert [kept.widths.layers for kept in tried] == [2, 2, 4, 4, 5, 5]
    assert tried[-1].widths == full and SimpleNamespace(**vars(tried[0])).widths.hidden <= 512
