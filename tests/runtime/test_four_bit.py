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
