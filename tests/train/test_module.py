"""What trains and what does not; padding counts nothing; batches by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import kl_div

from compress.data.windows import Windows
from compress.losses.logits import Logits
from compress.train.batches import Batches
from compress.train.module import Distillation
from compress.train.settings import Training
from tests.models import tiny


def module(student: Any, teacher: Any) -> Distillation:
    return Distillation(student, teacher, Logits(), Training(), steps=4)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gpt_neox"])
def test_padding_does_not_leak_into_the_loss(family: str) -> None:
    """A padded batch gives the mean over real tokens of what each window gives alone, whatever the padding holds."""
    (_, student), (_, teacher) = tiny(family, seed=1), tiny(family)
    lengths = torch.tensor([20, 7, 13], dtype=torch.int32)
    ids = torch.randint(3, 300, (3, 20), generator=torch.Generator().manual_seed(0))
    losses = []
    for filler in (2, 99):
        padded = ids.clone()
        for row, length in enumerate(lengths):
            padded[row, length:] = filler
        with torch.no_grad():
            losses.append(
                float(
                    module(student, teacher).training_step(
                        {"ids": padded.int(), "lengths": lengths, "rows": torch.arange(2), "share": torch.ones(())}, 0
                    )
                )
            )
    kls = []
    with torch.no_grad():
        for row, length in zip(ids, lengths, strict=True):
            s, t = (m(row[None, :length]).logits[0, :-1].double().log_softmax(-1) for m in (student, teacher))
            kls.append(kl_div(s, t, log_target=True, reduction="none").sum(-1))
    expected = float(torch.cat(kls).mean())
    assert losses == pytest.approx([expected, expected], rel=1e-4)


def test_teacher_and_frozen_weights_are_no_part_of_a_checkpoint() -> None:
    (_, student), (_, teacher) = tiny("llama", seed=1), tiny("llama")
    student.get_input_embeddings().requires_grad_(False)
    net = module(student, teacher)
    checkpoint: dict[str, Any] = {"state_dict": net.state_dict()}
    net.on_save_checkpoint(checkpoint)
    names = set(checkpoint["state_dict"])
    assert names and all(name.startswith("student.") for name in names)
    assert not any("embed_tokens" in name for name in names)


def test_batches_begin_where_a_killed_run_stopped() -> None:
    windows = Windows(torch.arange(40, dtype=torch.int32).view(10, 4), torch.full((10,), 4, dtype=torch.int32))
    settings = Training(batch=4, accumulate=2)
    whole = Batches(windows, settings, steps=5)
    resumed = Batches(windows, settings, steps=5)
    resumed.first_step = 3
    a, b = list(whole), list(resumed)
    assert len(a) == 10 and len(b) == 4
    assert all(torch.equal(x["ids"], y["ids"]) for x, y in zip(a[6:], b, strict=True))
    assert a[0]["ids"].shape == (2, 4)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_fused_norms_are_the_same_model(family: str) -> None:
    """In fp32 to rounding, under autocast to bf16's; and the model is whole again afterwards."""
    from compress.train.norms import FusedRMSNorm, fuse_norms, put_modules

    _, model = tiny(family)
    ids = torch.randint(3, 300, (2, 16), generator=torch.Generator().manual_seed(0))
    names = [name for name, _ in model.named_parameters()]
    with torch.no_grad():
        expected = model(ids).logits
        norms = fuse_norms(model)
        fused = [module for module in model.modules() if isinstance(module, FusedRMSNorm)]
        assert len(fused) == len(norms) == {"llama": 9, "qwen3": 17, "gpt2": 0}[family]
        assert [name for name, _ in model.named_parameters()] == names
        assert torch.allclose(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert all(module(torch.ones(1, len(module.weight))).dtype == torch.bfloat16 for module in fused)
            assert float((model(ids).logits - expected).norm() / expected.norm()) < 0.03
        put_modules(model, norms)
        assert torch.equal(model(ids).logits, expected)
