"""Processors without products in half precision: what is stored in it computes in fp32, and says the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from compress import hardware
from compress.export.fresh import FreshProcess
from compress.runtime.four_bit import is_four_bit
from compress.runtime.loading import load_model, slow_half

IDS = torch.arange(3, 35)[None]
AVX2 = frozenset({"fma", "avx", "avx2"})
BF16 = AVX2 | {"avx512f", "avx512_bf16"}


def runs_on(flags: frozenset[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "processor", lambda: ("a processor", flags))


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """A tiny bf16 model."""
    from tests.models import save

    _, model = save("llama", tmp_path / "halves")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "halves")
    return tmp_path / "halves"


@pytest.fixture
def four_bits(halves: Path, tmp_path: Path) -> Path:
    """The same in NF4, as bitsandbytes and transformers write it."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(halves, quantization_config=config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "four_bits")
    for file in halves.glob("tok*"):
        shutil.copy(file, tmp_path / "four_bits")
    return tmp_path / "four_bits"


def test_it_is_the_processor_that_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    runs_on(AVX2, monkeypatch)
    assert slow_half(torch.bfloat16, "cpu") and slow_half(torch.float16, torch.device("cpu"))
    assert not slow_half(torch.float32, "cpu") and not slow_half(torch.float16, "cuda")
    runs_on(BF16, monkeypatch)
    assert not slow_half(torch.bfloat16, "cpu") and slow_half(torch.float16, "cpu")
    runs_on(frozenset({"asimd", "bf16"}), monkeypatch)  # ARM
    assert not slow_half(torch.bfloat16, "cpu")


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("name", ["halves", "four_bits"])
def test_the_same_weights_compute_in_fp32(
    name: str, plain: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = request.getfixturevalue(name)
    runs_on(BF16, monkeypatch)
    with torch.no_grad():
        stored = load_model(folder, plain=plain)
        half = stored(IDS).logits
        runs_on(AVX2, monkeypatch)
        model = load_model(folder, plain=plain)
        whole = model(IDS).logits
    assert half.dtype is torch.bfloat16 and whole.dtype is torch.float32
    for key, weight in stored.named_parameters():
        if weight.is_floating_point():
            assert torch.equal(weight.float(), model.get_parameter(key).float()), key
    layers = [m for m in model.modules() if is_four_bit(m)]
    assert all(layer.compute_dtype is torch.float32 for layer in layers) and bool(layers) == (name == "four_bits")
    # bf16 keeps 8 bits of every result
    assert (half - whole).norm() < 5e-2 * whole.norm()
    with torch.no_grad():
        assert torch.equal(load_model(folder, dtype=torch.bfloat16, plain=plain)(IDS).logits, half)


@pytest.mark.parametrize("plain", [False, True])
def test_a_model_in_fp32_whose_four_bits_would_compute_in_half(
    plain: bool, four_bits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((four_bits / "config.json").read_text()) | {"dtype": "float32"}
    (four_bits / "config.json").write_text(json.dumps(config))
    runs_on(BF16, monkeypatch)
    types = {m.compute_dtype for m in load_model(four_bits, plain=plain).modules() if is_four_bit(m)}
    assert types == {torch.bfloat16}
    runs_on(AVX2, monkeypatch)
    types = {m.compute_dtype for m in load_model(four_bits, plain=plain).modules() if is_four_bit(m)}
    assert types == {torch.float32}


@pytest.mark.parametrize("name", ["halves", "four_bits"])
def test_so_does_the_fresh_process(name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = request.getfixturevalue(name)
    runs_on(AVX2, monkeypatch)
    with torch.no_grad(), FreshProcess("transformers", folder, 1, 64) as process:
        expected = load_model(folder, plain=True)(IDS).logits[0]
        assert torch.allclose(process.logits(IDS[0]), expected, atol=1e-5)


def test_written_weights_do_not_depend_on_it(halves: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.checkpoint import Checkpoint
    from compress.export.tensors import dense_model
    from compress.stage import DENSE

    runs_on(AVX2, monkeypatch)
    model = dense_model(Checkpoint(halves, frozenset({DENSE})), torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_int8_layers_round_their_inputs_as_bitsandbytes_does(halves: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It casts them to fp16 before: without that, single codes differ, and after some layers the models too."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    runs_on(AVX2, monkeypatch)
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    AutoModelForCausalLM.from_pretrained(halves, quantization_config=config).save_pretrained(halves / "int8")
    with torch.no_grad():
        ours, theirs = (load_model(halves / "int8", plain=plain)(IDS).logits for plain in (False, True))
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()


def test_int8_layers_with_outliers_apart_stay_as_they_are(halves: Path) -> None:
    """LLM.int8() multiplies loud inputs in fp16: in codes, as ours, another model would answer."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model = AutoModelForCausalLM.from_pretrained(halves)
    model.model.layers[0].input_layernorm.weight.data[3] = 40.0
    model.save_pretrained(halves)
    config = BitsAndBytesConfig(load_in_8bit=True)
    AutoModelForCausalLM.from_pretrained(halves, quantization_config=config).save_pretrained(halves / "int8")
    with torch.no_grad():
        ours, theirs = (load_model(halves / "int8", plain=plain)(IDS).logits for plain in (False, True))
    assert torch.equal(ours, theirs)


def test_the_type_is_read_from_the_weights_where_the_config_says_none(
    halves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    values = json.loads((halves / "config.json").read_text())
    (halves / "config.json").write_text(json.dumps({k: v for k, v in values.items() if k != "dtype"}))
    runs_on(AVX2, monkeypatch)
    with torch.no_grad(), FreshProcess("transformers", halves, 1, 64) as process:
        whole = load_model(halves)(IDS).logits
        assert whole.dtype is torch.float32
        assert torch.allclose(process.logits(IDS[0]), whole[0], atol=1e-5)
