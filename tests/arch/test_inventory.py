"""Closed-form counts against a model of the same config, for every family and every config variant of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from compress.arch import FAMILIES, adapter_for
from compress.arch.inventory import inventory, total_parameters
from compress.arch.plain import DEFAULTS, plain_config, read_plain_config
from compress.errors import UserError
from tests.models import VARIANTS, tiny


def on_meta(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_tensor_is_named_and_shaped_as_the_model_has_it(name: str, tmp_path: Path) -> None:
    config, _ = tiny(name)
    config.save_pretrained(tmp_path)
    plain = read_plain_config(tmp_path)
    expected = {key: tuple(p.shape) for key, p in on_meta(config).named_parameters()}
    for stated in (config, plain):
        assert {p.name: p.shape for p in inventory(stated)} == expected
        assert total_parameters(stated) == sum(p.numel() for p in on_meta(config).parameters())
    roles = {p.name: p.role for p in inventory(plain)}
    linears = {n for n, m in on_meta(config).named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
    embeddings = {n for n, m in on_meta(config).named_modules() if n in ("lm_head", "embed_out")}
    assert {n.removesuffix(".weight") for n, role in roles.items() if role == "linear"} == linears - embeddings


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_that_says_nothing_means_what_transformers_means(family: str) -> None:
    config, plain = AutoConfig.for_model(family), plain_config({"model_type": family})
    assert adapter_for(config).shape(config) == adapter_for(plain).shape(plain)
    assert total_parameters(plain) == total_parameters(config) == sum(p.numel() for p in on_meta(config).parameters())


def test_every_family_has_defaults() -> None:
    assert set(DEFAULTS) == set(FAMILIES)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_cut_widths_are_those_of_the_pruned_model(name: str) -> None:
    from dataclasses import replace

    config, _ = tiny(name)
    architecture = adapter_for(config)
    widths = replace(architecture.shape(config).widths, mlp=64, layers=3)
    pruned = architecture._pruned(config, range(3), widths)
    assert total_parameters(config, widths) == sum(p.numel() for p in on_meta(pruned).parameters())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "{}",
        '{"model_type": "bloom"}',
        '{"model_type": "llama", "hidden_size": "x"}',
        '{"model_type": "llama", "num_attention_heads": 0}',
        '{"model_type": "llama", "num_attention_heads": 64, "num_key_value_heads": 7}',
    ],
)
def test_what_is_no_config_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError):
        read_plain_config(tmp_path)
    with pytest.raises(UserError):
        read_plain_config(tmp_path / "nowhere")


def test_no_transformers_is_needed() -> None:
    import subprocess
    import sys

    code = (
        "import sys\n"
        "from compress.arch.inventory import total_parameters\n"
        "from compress.arch.plain import plain_config\n"
        "print(total_parameters(plain_config({'model_type': 'llama'})))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    assert int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout) > 6e9
