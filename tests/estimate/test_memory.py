"""Memory formulas against what torch really keeps, and against themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compress.arch import adapter_for
from compress.estimate.fits import GPUS, USABLE, gpus_needed, smallest_gpu
from compress.estimate.form import Form
from compress.estimate.memory import GRADIENT, MOMENTS, Batch, kv_cache, layer_activations, training
from compress.recover.adapters import add_adapters
from compress.train.module import last_hidden
from compress.train.norms import fuse_norms
from tests.models import tiny

BATCH = Batch(3, 40, True)


def kept_by_autograd(name: str, layers: int, bf16: bool, rank: int = 0) -> tuple[int, Any]:
    """Bytes that one forward pass keeps, weights and their copies in the compute type left out, each storage once."""
    config, model = tiny(name, **{"n_layer" if name == "gpt2" else "num_hidden_layers": layers})
    model.get_input_embeddings().requires_grad_(False)
    if rank:
        add_adapters(model.bfloat16(), config, rank, 8.0)
    fuse_norms(model)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {tuple(p.shape) for p in model.parameters()} | {tuple(p.shape[::-1]) for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        copy_of_a_weight = tensor.dtype is torch.bfloat16 and tuple(tensor.shape) in shapes
        if storage.data_ptr() not in weights and not copy_of_a_weight:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, 300, (BATCH.windows, BATCH.length))
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        alive = last_hidden(model, ids)
    del alive
    return sum(kept.values()), config


LAYER_NORMED = ("gpt2", "gpt_neox", "gpt_neox-serial")
RMS_NORMED = ("llama", "llama-biases", "llama-head_dim")


@pytest.mark.parametrize(
    ("name", "bf16"), [*((n, True) for n in RMS_NORMED + LAYER_NORMED), *((n, False) for n in RMS_NORMED)]
)
def test_activations_of_a_layer_are_what_autograd_keeps(name: str, bf16: bool) -> None:
    (one, _), (three, config) = kept_by_autograd(name, 1, bf16), kept_by_autograd(name, 3, bf16)
    form = Form(config, adapter_for(config).shape(config).widths)
    said = layer_activations(form, Batch(BATCH.windows, BATCH.length, bf16))
    assert said == pytest.approx((three - one) / 2, rel=0.03)


def test_activations_beside_adapters_are_what_autograd_keeps() -> None:
    (one, _), (three, config) = (kept_by_autograd("llama", layers, True, rank=4) for layers in (1, 3))
    adapted = Form(config, adapter_for(config).shape(config).widths, rank=4)
    said = layer_activations(adapted, Batch(BATCH.windows, BATCH.length, True))
    assert said == pytest.approx((three - one) / 2, rel=0.03)


def form(layers: int = 4, **more: Any) -> Form:
    config, _ = tiny("llama", num_hidden_layers=layers, **more)
    return Form(config, adapter_for(config).shape(config).widths)


def test_sixteen_bytes_a_trained_parameter() -> None:
    model = form()
    terms = training(model, BATCH, model.count(), master=4 * model.count())
    state = terms["weights"] + terms["gradients"] + terms["optimizer state"]
    assert state == 16 * model.count() and terms["gradients"] == GRADIENT * model.count() and MOMENTS == 8


def test_activations_grow_with_tokens_and_layers() -> None:
    assert layer_activations(form(), Batch(6, 40, True)) == 2 * layer_activations(form(), BATCH)
    deep = training(form(8), BATCH, 1, 0)["activations"]
    assert deep == 2 * training(form(4), BATCH, 1, 0)["activations"]


def test_the_kv_cache_is_that_of_transformers() -> None:
    config, model = tiny("llama", num_key_value_heads=2)
    with torch.no_grad():
        past = model.bfloat16()(torch.zeros(3, 7, dtype=torch.int64), use_cache=True).past_key_values
    held = sum(t.numel() * t.element_size() for layer in past.layers for t in (layer.keys, layer.values))
    assert kv_cache(Form(config, adapter_for(config).shape(config).widths), 3, 7) == held


def test_the_fewest_gpus_that_hold_it() -> None:
    size = GPUS["80 GB"] << 30
    for shared, own in ((10**12, 10**9), (10**9, 10**9), (5 * 10**11, 4 * 10**10)):
        count = gpus_needed(shared, own, size)
        assert shared / count + own <= USABLE * size
        assert count == 1 or shared / (count - 1) + own > USABLE * size
    assert gpus_needed(1, size, size) == 0
    assert smallest_gpu(10 * 10**9) == "16 GB" and smallest_gpu(10**13) is None


def test_every_gpu_of_a_divided_training_holds_the_teacher() -> None:
    from compress.estimate.fits import ways
    from compress.estimate.machine import Machine

    known = Machine("test", 2, 24 << 30, 1 << 40, True, 1e11, 4e11, 2e10, "nobody")
    student = form(4)
    rows = [ways(student, teacher, BATCH, known, 0)[-1] for teacher in (form(4), form(8))]
    small, large = (row["bytes"] for row in rows)
    assert rows[0]["way"].startswith("FSDP") and large - small == 2 * (form(8).count() - form(4).count())


def test_no_word_of_torch_is_needed(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import compress.estimate.run, sys; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


def test_settings_that_save_memory_are_counted() -> None:
    """Compared with what autograd keeps between checkpointed layers: their inputs."""
    from compress.estimate.work import micro_batch
    from compress.train.settings import Training

    model = form(8)
    plain = training(model, micro_batch(Training(), True), model.count(), 0)
    eight = Training(optimizer={"_target_": "bitsandbytes.optim.AdamW8bit"})
    few = training(model, micro_batch(eight, True), model.count(), 0)
    assert few["optimizer state"] * 4 == plain["optimizer state"] and few["activations"] == plain["activations"]
    again = training(model, micro_batch(Training(activation_checkpointing=True), True), model.count(), 0)
    tokens = Training().batch * 256
    assert again["activations"] == plain["activations"] / 8 + 8 * 4 * tokens * 64
    halved = training(model, micro_batch(Training(devices=2), True), model.count(), 0)
    assert halved["activations"] * 2 == plain["activations"]
