"""Bytes asked for are bytes on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from compress.arch import adapter_for
from compress.errors import UserError
from compress.prune.plan import prefix
from compress.prune.size import dense_bytes
from compress.prune.stage import Prune
from compress.prune.surgery import pruned_model
from tests.models import tiny


@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen3-biases", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_file_is_no_larger_and_not_much_smaller(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    _, model = tiny(name)
    model = model.to(dtype)
    model.config.dtype = dtype
    architecture = adapter_for(model.config)
    whole = dense_bytes(model.config, architecture.shape(model.config).widths)
    model.save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole" / "model.safetensors").stat().st_size == pytest.approx(whole, rel=0.03)
    asked = int(0.8 * whole)
    widths = Prune(bytes=asked).widths(model.config)
    pruned = pruned_model(model, architecture, prefix(architecture.shape(model.config), widths))
    pruned.save_pretrained(tmp_path / "pruned")
    assert 0.94 * asked < (tmp_path / "pruned" / "model.safetensors").stat().st_size <= asked
    assert isinstance(pruned, AutoModelForCausalLM._model_mapping[type(model.config)])


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"bytes": 0}, "a size in bytes"),
        ({"bytes": 10**9}, "nothing to cut"),
        ({"bytes": 20_000}, "bytes=20000 cannot be reached"),
        ({"latency": 1.5}, "above 0 and at most 1"),
        ({"latency": 0.8, "bytes": 10**5}, "two goals at once"),
        ({"latency": 0.8, "keep": 0.7}, "keep=0.7"),
        ({"query_heads": 0.0}, "query_heads=0.0"),
        ({"query_heads": 0.3}, "0.60 of 2 query heads"),
        ({"removal_tokens": 0}, "removal_tokens=0"),
        ({"share": {"depth": 1.0}}, "depth"),
    ],
)
def test_goals_that_make_no_sense_are_refused(fields, problem: str) -> None:
    config, _ = tiny("llama")
    with pytest.raises(UserError, match=problem):
        Prune(**fields).widths(config)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_query_heads_without_groups_are_refused(family: str) -> None:
    config, _ = tiny(family)
    with pytest.raises(UserError, match="all of the 1 query heads of each KV group"):
        Prune(keep=None, query_heads=0.5).widths(config)
