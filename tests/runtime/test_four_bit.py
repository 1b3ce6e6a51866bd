"""Gradients through the 4-bit base must be those of a dequantized reference, also after a forward without gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compress.runtime.four_bit import dequantized, is_four_bit
from compress.runtime.loading import load_model


@pytest.fixture(scope="module")
def nf4_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny NF4 model, written by bitsandbytes and transformers themselves."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from tests.models import save

    dense, folder = tmp_path_factory.mktemp("dense"), tmp_path_factory.mktemp("nf4")
    save("llama", dense, hidden_size=128, head_dim=32)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    AutoModelForCausalLM.from_pretrained(dense, quantization_config=config, dtype=torch.float32).save_pretrained(folder)
    return folder


def reference(model: Any) -> Any:
    """The same model with dense layers holding the decoded weights."""
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_config(
        type(model.config).from_dict({k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}),
        dtype=torch.float32,
    )
    state = {name: tensor for name, tensor in model.state_dict().items() if name in plain.state_dict()}
    for path, module in model.named_modules():
        if is_four_bit(module):
            state[f"{path}.weight"] = dequantized(module)
    plain.load_state_dict(state)
    return plain.eval()


def test_repacking_is_off(nf4_folder: Path) -> None:
    layers = [m for m in load_model(nf4_folder).modules() if is_four_bit(m)]
    assert layers and not any(m.support_avx512bf16_for_cpu for m in layers)


def test_layers_run_on_our_kernels_and_stay_what_they_were(nf4_folder: Path) -> None:
    model, stored = load_model(nf4_folder), load_model(nf4_folder, plain=True).state_dict()
    layers = [m for m in model.modules() if is_four_bit(m)]
    assert {type(m).__name__ for m in layers} == {"KernelLinear4bit"}
    assert stored.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("tokens", [1, 3, 33])
def test_logits_equal_the_dequantized_reference(nf4_folder: Path, tokens: int) -> None:
    model = load_model(nf4_folder)
    ids = torch.arange(10, 10 + tokens)[None]
    with torch.no_grad():
        actual, expected = model(ids).logits, reference(model)(ids).logits
    assert (actual - expected).norm() / expected.norm() < 1e-5


def test_another_state_is_noticed(nf4_folder: Path) -> None:
    """peft merges an adapter by giving the layer a new weight."""
    from bitsandbytes.nn import Params4bit

    layer: Any = next(m for m in load_model(nf4_folder).modules() if is_four_bit(m))
    x = torch.randn(2, layer.in_features)
    with torch.no_grad():
        layer(x)
        layer.weight = Params4bit(dequantized(layer) * 3 + 0.1, requires_grad=False, quant_type="nf4").to("cpu")
        torch.testing.assert_close(layer(x), x @ dequantized(layer).t(), rtol=1e-4, atol=1e-4)


def test_a_tied_embedding_in_four_bits_is_never_dense() -> None:
    from compress_kernels import NF4_CODE, decode_rows_4bit, effective_absmax, quantize_4bit

    from compress.runtime.four_bit import FourBitEmbedding, put_embedding
    from tests.models import tiny

    _, model = tiny("llama", tie_word_embeddings=True)
    ids = torch.arange(3, 20)[None]
    dense = model.get_input_embeddings().weight
    q = quantize_4bit(dense, block=32)
    codes = q.codes.view(len(dense), -1)
    with torch.no_grad():
        dense.copy_(decode_rows_4bit(codes, effective_absmax(q), NF4_CODE, 32, dtype=torch.float32))
        expected = model(ids).logits
        put_embedding(model, FourBitEmbedding(codes, effective_absmax(q), NF4_CODE, 32, dtype=torch.float32))
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False)[:, : ids.shape[1]], ids)
    held = [t for t in [*model.parameters(), *model.buffers()] if t.numel() == dense.numel()]
    assert not held, "a dense embedding is still there"
    assert model.get_output_embeddings().codes.data_ptr() == model.get_input_embeddings().codes.data_ptr()


def test_gradient_to_the_input_equals_the_dequantized_reference(nf4_folder: Path) -> None:
    model = load_model(nf4_folder)
    ids = torch.arange(10, 42)[None]
    with torch.no_grad():
        model(ids)  # with repacking on, this one would spoil every gradient from here on
    plain = reference(model)
    gradients = []
    for net in (model, plain):
        embedded = net.get_input_embeddings()(ids).detach().requires_grad_(True)
        net(inputs_embeds=embedded).logits.float().logsumexp(-1).sum().backward()
        assert embedded.grad is not None
        gradients.append(embedded.grad)
    error = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert error < 1e-4, float(error)
