"""The estimate of whole chains: what the pipeline then measures, and what `mode=estimate` promises."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

import compress
from compress.arch import adapter_for
from compress.arch.plain import plain_config
from compress.command import compose
from compress.config import build, pipelines
from compress.errors import UserError
from compress.estimate.form import Form
from compress.estimate.machine import Machine
from compress.estimate.predict import Plan, predict
from compress.estimate.stages import STAGES, effect_of
from compress.estimate.subject import EMBEDDED, subject_in
from compress.estimate.work import World
from compress.source import EmbeddedModel
from compress.stage import DENSE, QUANTIZED, TEXT
from compress.store import Store
from compress.train.settings import Training
from tests.models import save

MACHINE = Machine("test", 2, 24 << 30, 1 << 40, True, 1e11, 4e11, 2e10, "nobody")
SEVENTY = {
    "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256, "torch_dtype": "bfloat16",
}  # fmt: skip


def embedded() -> Form:
    return form_of(EMBEDDED)


def form_of(values: dict[str, Any]) -> Form:
    config = plain_config(values)
    return Form(config, adapter_for(config).shape(config).widths)


def plan(*overrides: str, written: bool = False) -> Plan:
    config = build(compose(list(overrides)))
    own = config.own_text
    return Plan(config.stages, embedded(), embedded(), config.evaluate.tokens, own.tokens, own.length, written)


def test_seventy_billion_in_three_seconds_of_the_processor(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SEVENTY))
    code = (
        "import json, sys, time\n"
        "import compress\n"
        f"overrides = ['+pipeline=prune_distill', 'mode=estimate', 'model=hf', 'model.path={tmp_path}']\n"
        "report = compress.run(overrides)\n"
        "print(json.dumps([report['model']['params'], time.process_time(), sorted({'torch'} & set(sys.modules))]))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    params, seconds, heavy = json.loads(out.stdout)
    assert params == 70_553_706_496 and heavy == [] and seconds < 3
    assert [file.name for file in tmp_path.iterdir() if file != cache] == ["config.json"]


def test_no_pipeline_is_checked_or_estimated_with_torch(tmp_path: Path, cache: Path) -> None:
    code = (
        "import sys\n"
        "import compress\n"
        f"for name in {pipelines()}:\n"
        "    compress.run([f'+pipeline={name}', 'mode=estimate'])\n"
        "    assert 'torch' not in sys.modules, name"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_the_command_prints_tables_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    arguments = ["+pipeline=qlora", "mode=estimate"]
    done = subprocess.run(
        [sys.executable, "-m", "compress", *arguments], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    for said in ("134,515,008", "nf4, double quantization", "recover", "FSDP", "arXiv 1910.02054", "rule of thumb"):
        assert said in done.stdout
    assert [file for file in tmp_path.iterdir() if file != cache] == []


def test_an_estimate_needs_no_pipeline_and_refuses_what_is_no_model(tmp_path: Path, cache: Path) -> None:
    assert compress.run(["mode=estimate"])["stages"] == []
    with pytest.raises(UserError):
        compress.run(["mode=estimate", "model=hf", f"model.path={tmp_path}"])
    (tmp_path / "config.json").write_text(json.dumps(SEVENTY | {"quantization_config": {"quant_method": "x"}}))
    with pytest.raises(UserError, match="quantized"):
        compress.run(["mode=estimate", "model=hf", f"model.path={tmp_path}"])


def test_every_stage_is_estimated_and_its_terms_add_up() -> None:
    for name in pipelines():
        rows = predict(plan(f"+pipeline={name}"), MACHINE)
        assert [row["name"] for row in rows] == list(build(compose([f"+pipeline={name}"])).stages)
        for row in rows:
            assert sum(row["terms"].values()) == row["peak_rss_bytes"] and row["seconds"] > 0
            assert row["by_general_rule"] == (row["kind"] not in STAGES)


def test_own_text_is_counted_once_and_not_at_all_when_it_is_there() -> None:
    fresh, stored = (predict(plan("+pipeline=prune_distill", written=written), MACHINE) for written in (False, True))
    assert "the original's own text" in fresh[0]["seconds_by_part"]
    assert all("the original's own text" not in row["seconds_by_part"] for row in [*fresh[1:], *stored])
    assert stored[0]["peak_rss_bytes"] < fresh[0]["peak_rss_bytes"]


def test_settings_move_the_estimate_the_way_they_should() -> None:
    def distill(*more: str) -> dict[str, Any]:
        return predict(plan("+pipeline=prune_distill", *more), MACHINE)[2]

    base = distill()
    assert distill("train.accumulate=2")["peak_rss_bytes"] < base["peak_rss_bytes"]
    assert distill("train.tokens=32000")["seconds"] == pytest.approx(2 * base["seconds"], rel=0.01)
    assert distill("stages.distill.embeddings=true")["peak_rss_bytes"] > base["peak_rss_bytes"]
    assert distill("stages.prune.keep=0.7")["bytes"] < base["bytes"]


@dataclass
class Unknown:
    """A stage no table knows."""

    block: int = 32
    calibration_tokens: int = 4096
    train: Training = field(default_factory=Training)
    kind: ClassVar[str] = "int4_new"
    needs: ClassVar[frozenset[str]] = frozenset({DENSE})
    gives: ClassVar[frozenset[str]] = frozenset({QUANTIZED})
    takes: ClassVar[frozenset[str]] = frozenset({DENSE})
    reads: ClassVar[frozenset[str]] = frozenset({TEXT})


def test_an_unknown_stage_is_estimated_by_what_it_says_of_itself() -> None:
    form = embedded()
    effect = effect_of(Unknown(), form, World(form, form, True))
    assert effect.by_general_rule and effect.form.linears.kind == "int4" and effect.form.linears.block == 32
    assert {phase.name for phase in effect.phases} >= {"calibrating", "training", "encoding"}
    rows = predict(replace(plan("+pipeline=nf4"), stages={"new": Unknown()}), MACHINE)
    assert rows[0]["by_general_rule"] and rows[0]["bytes"] < form.bytes / 2


def test_the_embedded_model_is_known_before_it_is_fetched() -> None:
    folder = EmbeddedModel().cached()
    if folder is None:
        assert embedded().count() == 134_515_008
    else:
        assert subject_in(folder, "it").form.parameters == embedded().parameters


def test_a_folder_says_its_type(tmp_path: Path) -> None:
    config, _ = save("llama", tmp_path, tokenizer=False)
    assert subject_in(tmp_path, "it").dtype == "float32"
    values = json.loads((tmp_path / "config.json").read_text()) | {"dtype": "int3"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="int3"):
        subject_in(tmp_path, config.model_type).dtype  # noqa: B018 - raises


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["+pipeline=int4_gptq", "stages.quant.grid=int5_g64"], "no grid 'int5_g64'"),
        (["+pipeline=qat_nf4", "stages.quant.embedding=q3_k"], "no grid 'q3_k'"),
        (["+pipeline=mixed", "stages.quant.candidates=[q4_0,foo]"], "no grid 'foo'"),
        (["+pipeline=mixed", "stages.quant.bits=0.1"], "too little"),
        (["+pipeline=mixed", "stages.quant.megabytes=0.01"], "too little"),
        (["+pipeline=mixed", "stages.quant.bits=inf"], "and a number"),
        (["+pipeline=nf4_gptq", "stages.quant.calibration.damping=inf"], "and a number"),
        (["+pipeline=qat_int8", "stages.quant.grid=nf4"], "for grid=int8"),
        (["+pipeline=q4_0_gptq", "stages.quant.grid=q4_1"], "no grid 'q4_1'"),
        (["+pipeline=q4_0_gptq", "stages.quant.embedding=q4_1"], "no grid 'q4_1'"),
        (["+pipeline=int4_gptq", "stages.quant.grid=int4_g48"], "no grid 'int4_g48'"),
        (["+pipeline=prune_search", "stages.prune.prune.keep=0.001"], "no candidate meets the budget"),
        (["+pipeline=prune_search", "stages.prune.prune.keep=0.001", "own_text.tokens=0"], "no candidate"),
        (["+pipeline=distill_only", "stages.distill.teacher_store=topk", "stages.distill.teacher_k=9999"], "9999"),
    ],
)
def test_what_a_run_refuses_is_refused(overrides: list[str], said: str, tmp_path: Path, cache: Path) -> None:
    save("llama", tmp_path / "model")
    with pytest.raises(UserError, match=said):
        compress.run([*overrides, "mode=estimate", "model=hf", f"model.path={tmp_path / 'model'}"])


@pytest.mark.parametrize(
    ("pipeline", "option", "stage"),
    [
        ("distill_only", "stages.distill.teacher_correction_tokens=1000000", "distill"),
        ("distill_only", "stages.distill.teacher_store=topk", "distill"),
        ("distill_only", "train.validate_every=500", "distill"),
        ("distill_only", "train=muon", "distill"),
        ("prune_only", "stages.prune.layer_importance=perplexity", "prune"),
    ],
)
def test_options_that_cost_time_cost_time(pipeline: str, option: str, stage: str) -> None:
    seconds = []
    for more in ([], [option]):
        rows = {row["name"]: row for row in predict(plan(f"+pipeline={pipeline}", *more), MACHINE)}
        seconds.append(rows[stage]["seconds"])
    assert seconds[1] > 1.02 * seconds[0], seconds


def test_a_backward_pass_costs_time_and_memory() -> None:
    rows = []
    for importance in ("activation", "taylor", "fisher"):
        chain = plan("+pipeline=prune_only", f"stages.prune.importance={importance}", written=True)
        predicted = predict(chain, MACHINE)
        rows.append(next(row for row in predicted if row["name"] == "prune"))
    seconds, peaks = ([row[what] for row in rows] for what in ("seconds", "peak_rss_bytes"))
    assert seconds[1] == seconds[2] > 1.5 * seconds[0], seconds
    assert peaks[1] == peaks[2] > peaks[0], peaks


def test_what_is_in_memory_together_is_what_stages_take() -> None:
    """The estimate does without torch, so it has its own copy of these numbers."""
    from compress import layerwise
    from compress.estimate import quantizing, stages
    from compress.prune import readers, text_loss
    from compress.quant import output_moments

    assert quantizing.OUTPUT_ROWS == output_moments.ROWS
    assert (stages.BATCH_TOKENS, stages.LOGIT_ROWS) == (layerwise.BATCH_TOKENS, text_loss.CHUNK)
    assert stages.HEAD_ROWS == readers.ROWS


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_run_checks_the_memory_of_either_device(
    device: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.estimate import fits, run

    save("llama", tmp_path, tokenizer=False)
    monkeypatch.setattr(run, "machine", lambda *_, **__: MACHINE)
    config = build(compose(["+pipeline=prune_distill"]))
    rows, _, measured = run.predicted(config, (tmp_path, tmp_path), Store(cache / "store"), own_written=True)
    there = "_gpu_bytes" if device == "cuda" else "memory_bytes"
    monkeypatch.setattr(fits, there, lambda: 80 << 30)
    fits.check_memory(rows, config.stages, device, measured)
    monkeypatch.setattr(fits, there, lambda: 1 << 20)
    with pytest.raises(UserError, match="GPU" if device == "cuda" else "this machine"):
        fits.check_memory(rows, config.stages, device, measured)


@pytest.mark.parametrize("tied", [False, True])
def test_decoding_reads_what_each_stage_stores(tied: bool) -> None:
    """An embedding that is not the head too gives one row for a token, on whatever grid it lies."""
    from compress.estimate.run import decode_roofline

    form = form_of(EMBEDDED | {"tie_word_embeddings": tied, "vocab_size": 400_000})
    chain = plan("+pipeline=q4_0_gptq", "stages.quant.embedding=q4_0", written=True)
    original, quantized = decode_roofline(replace(chain, original=form, first=form), MACHINE)
    read = form.count() - (0 if tied else form.count("embedding"))
    assert original["bytes_per_token"] == pytest.approx(2 * read, rel=0.01)
    assert quantized["bytes_per_token"] == pytest.approx(4.5 / 8 * read, rel=0.05)
    assert quantized["tokens_per_second"] == pytest.approx(MACHINE.bandwidth / quantized["bytes_per_token"])


def test_without_products_in_bf16_weights_and_streams_take_twice_as_much() -> None:
    chain = plan("+pipeline=prune_distill", "quant@stages.quant=nf4", written=True)
    half, whole = (
        {row["name"]: row for row in predict(chain, replace(MACHINE, native_bf16=native))} for native in (True, False)
    )
    for name, models in (("prune", 1), ("compensate", 2), ("distill", 1)):
        now = whole[name]["terms"]
        read = half[name]["mapped_bytes"]
        assert now["weights in fp32"] == pytest.approx(2 * read, rel=0.01), name
        assert models == 1 or read > 1.8 * half["distill"]["mapped_bytes"]
    assert whole["prune"]["terms"]["streams"] == 2 * half["prune"]["terms"]["streams"]
    assert "weights in fp32" not in whole["quant"]["terms"]  # rounded tensor by tensor: nothing computes
    assert all(half[name]["gpu_bytes"] == whole[name]["gpu_bytes"] for name in half)  # it is not the GPU's processor
    stored = replace(chain, original=replace(chain.original, dtype="float32"))
    assert not any("weights in fp32" in row["terms"] for row in predict(stored, replace(MACHINE, native_bf16=False)))
