"""Quantization-aware training must beat rounding, on the figure that counts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

import compress
from tests.models import SENTENCES, tiny_tokenizer


def arguments(model: Path, text: Path, output: Path) -> list[str]:
    return [
        "model=hf",
        f"model.path={model}",
        "data=text",
        f"data.path={text}",
        "data@second=text",
        f"second.path={text}",
        "evaluate.tokens=1024",
        "evaluate.window=64",
        "evaluate.speed=false",
        "evaluate.prompts=[]",
        "train.length=64",
        "threads=1",
        f"output={output}",
    ]


def test_qat_beats_rounded_int8(tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    shared = [*arguments(tiny_llama, text_file, tmp_path), "own_text.tokens=512", "train.precision=fp32"]
    rounded = compress.run(["+pipeline=int8", "quant@stages.quant=int8", *shared])
    trained = compress.run(
        ["+pipeline=qat_int8", *shared, "train.tokens=32000", "train.batch=8", "stages.quant.train.rate=1e-4"]
    )
    kl_rounded, kl_trained = (report["stages"][-1]["metrics"]["kl_to_teacher"] for report in (rounded, trained))
    assert kl_trained < 0.9 * kl_rounded, (kl_rounded, kl_trained)


def test_fake_layers_compute_what_the_encoded_ones_will(tiny_llama: Path) -> None:
    """Layer by layer: over several, one activation that rounds the other way would move all that follow."""
    import torch

    from compress.arch.linears import linear_paths
    from compress.grids import Int8, level_of
    from compress.quant.fake import GridWeight, put_on_grid
    from compress.quant.inputs import RoundedInputs
    from compress.quant.stage import Activations
    from compress.runtime.int8 import Int8Linear
    from compress.runtime.loading import load_model

    model, dense, grid = load_model(tiny_llama), load_model(tiny_llama), Int8()
    paths = linear_paths(model.config)
    weights = {}
    for path in paths:
        weight = dense.get_submodule(path).weight.detach()
        scales = grid.start(weight)
        weights[path] = GridWeight(level_of(weight, scales, grid), scales, weight, grid)
    put_on_grid(model, weights, RoundedInputs(Activations.int8_token))
    with torch.no_grad():
        for path in paths:
            fake, plain = model.get_submodule(path), dense.get_submodule(path)
            levels, scales = fake.on_grid.final()
            parts = grid.pack(levels, scales, torch.float32).parts
            real = Int8Linear(parts["codes"], parts["absmax"], None)
            x = torch.randn(9, plain.in_features, generator=torch.Generator().manual_seed(0))
            torch.testing.assert_close(real(x), fake(x), rtol=1e-4, atol=1e-4)
            assert not torch.allclose(fake(x), plain(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama-biases"])
def test_int8_artifact_of_other_layouts(family: str, text_file: Path, tmp_path: Path, cache: Path) -> None:
    from tests.models import save

    save(family, tmp_path / "model")
    report = compress.run(["+pipeline=int8", *arguments(tmp_path / "model", text_file, tmp_path / "out")])
    artifact = report["artifacts"][0]
    assert artifact["verified"], artifact["error"]
    assert compress.load(artifact["path"]).config.quantization_config.load_in_8bit


def test_what_is_left_dense_keeps_the_scales_folded_into_it(text_file: Path, tmp_path: Path, cache: Path) -> None:
    """Rows of 64 do not fit blocks of 128: up_proj stays dense, and AWQ's scales of down_proj are in it."""
    from tests.models import save

    save("llama", tmp_path / "model")
    shared = [*arguments(tmp_path / "model", text_file, tmp_path), "own_text.tokens=512", "train.precision=fp32"]
    fields = ["stages.quant.grid=int4_g128", "stages.quant.scaling=awq", "stages.quant.calibration.tokens=512"]
    rounded = compress.run(
        ["+pipeline=nf4", "quant@stages.quant=grid", "stages.quant.algorithm=gptq", *fields, *shared]
    )
    still = ["train.tokens=200", "stages.quant.train.rate=1e-9"]
    trained = compress.run(["+pipeline=qat_nf4", *fields, *still, *shared])
    kl_rounded, kl_trained = (report["stages"][-1]["metrics"]["kl_to_teacher"] for report in (rounded, trained))
    assert kl_trained == pytest.approx(kl_rounded, rel=0.1)


def test_training_from_plain_rounding_starts_where_the_weights_were(tiny_llama: Path) -> None:
    """Not on the levels that they were rounded to, though the model computes in fp32 and is rounded in place."""
    import torch

    from compress.arch.linears import linear_paths
    from compress.checkpoint import Checkpoint
    from compress.grids import grid_named
    from compress.quant.qat import QAT
    from compress.quant.run import solve_layers
    from compress.quant.stage import Algorithm
    from compress.runtime.loading import load_model
    from compress.stage import Quiet

    checkpoint = Checkpoint(tiny_llama, frozenset({"dense"}), "tiny")
    context = SimpleNamespace(
        original=SimpleNamespace(config=checkpoint.config, tokenizer=tiny_tokenizer, rows=None),
        own_text=lambda: torch.zeros(0, 8, dtype=torch.long),
        corpus=SimpleNamespace(calibration=list(SENTENCES) * 40),
        seed=0,
        fabric=SimpleNamespace(device="cpu"),
        progress=Quiet(),
    )
    dense = load_model(tiny_llama, dtype=torch.float32)
    assert dense.dtype == load_model(tiny_llama).dtype == torch.float32
    grids = dict.fromkeys(linear_paths(checkpoint.config), grid_named("q4_0"))
    stage = QAT(grid="q4_0", algorithm=Algorithm.rtn)
    start = solve_layers(checkpoint, grids, stage, context, goals=True)  # type: ignore[arg-type]
    for path, goal in start.goals.items():
        assert torch.equal(goal, dense.get_submodule(path).weight), path
