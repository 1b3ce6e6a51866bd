"""Bytes asked for are bytes on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from compress.arch import adapter_for
from compress.checkpoint import Checkpoint
from compress.errors import UserError
from compress.prune.plan import prefix
from compress.prune.run import cut
from compress.prune.size import dense_bytes
from compress.prune.stage import Prune
from compress.prune.surgery import pruned_model
from compress.stage import DENSE, Context, Quiet
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


def test_weights_stored_wider_than_the_config_says_do_not_count_double(tmp_path: Path) -> None:
    _, model = tiny("llama")
    model.config.dtype = torch.float32
    model.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config.pop("torch_dtype", None)
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    checkpoint = Checkpoint(tmp_path / "model", frozenset({DENSE}), "m")
    shape = adapter_for(checkpoint.config).shape(checkpoint.config)
    asked = int(0.8 * dense_bytes(checkpoint.config, shape.widths))
    plan = prefix(shape, Prune(bytes=asked).widths(checkpoint.config))
    (tmp_path / "cut").mkdir()
    nothing: Any = None
    context = Context(tmp_path / "cut", tmp_path, checkpoint, None, nothing, nothing, nothing, Quiet())
    pruned = cut(checkpoint, plan, context)
    assert sum(file.stat().st_size for file in pruned.folder.glob("*.safetensors")) <= asked
    assert AutoModelForCausalLM.from_pretrained(pruned.folder).dtype == torch.bfloat16


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
