"""Every preset runs whole on a tiny model, and leaves what it promises."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import compress
from compress.command import run_overrides
from compress.config import pipelines
from compress.errors import UserError
from compress.export.gguf.settings import GGUFExport
from tests.pipelines.helpers import tiny_run

STAGE_KEYS = {"name", "kind", "key", "cached", "seconds", "peak_rss_bytes", "params", "bytes", "metrics"}
METRICS = {"ppl", "kl_to_teacher", "top1_agreement"}
ARTIFACT_KEYS = {"format", "path", "bytes", "sha256", "verified", "max_kl"}

BESIDE = dict.fromkeys(("int8", "int8_smooth", "qat_int8", "int4_gptq", "int4_awq"), "compressed_tensors")
BESIDE |= dict.fromkeys(("q4_0_gptq", "qat_q4_0", "mixed", "qat_mixed"), "gguf")
"""What a preset delivers besides the Hugging Face folder."""


HEADER_ROOM = 1 << 13
"""Bytes of a file's header beyond those predicted: nothing in a real model, percents in a tiny one."""


def check_prediction(stage: dict[str, Any]) -> None:
    """A run says before what its stages write and take."""
    said = stage["predicted"]
    assert said["bytes"] == pytest.approx(stage["bytes"], rel=0.01, abs=HEADER_ROOM), stage["name"]
    assert said["peak_rss_bytes"] > 0 and said["seconds"] > 0


@pytest.mark.parametrize("name", pipelines())
def test_runs_and_tells(name: str, tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    output = tmp_path / "out"
    overrides = tiny_run(name, tiny_llama, text_file, output)
    report = compress.run(overrides)
    assert shlex.split(report["command"]) == ["python", "-m", "compress", *overrides]
    assert report == json.loads((output / "report.json").read_text())
    formats = [artifact["format"] for artifact in report["artifacts"]]
    assert formats == ["hf", *([BESIDE[name]] if name in BESIDE else [])] and report["left_out"] == {}
    assert {"pipeline", "seed", "versions", "baseline", "final", "stages", "artifacts"} <= set(report)
    assert report["pipeline"] == name and report["baseline"]["kl_to_teacher"] < 1e-6 and report["student"] is None
    for stage in report["stages"]:
        assert set(stage) >= STAGE_KEYS and set(stage["metrics"]) >= METRICS
        assert stage["peak_rss_bytes"] > 0 and not stage["cached"]
        check_prediction(stage)
    assert "Predicted and measured" in (output / "report.md").read_text()
    for artifact in report["artifacts"]:
        assert set(artifact) >= ARTIFACT_KEYS and artifact["verified"], artifact["error"]
        assert artifact["seconds"] > 0 < artifact["predicted"]["seconds"] and not artifact["cached"]
        folder = Path(artifact["path"])
        assert (folder / "README.md").is_file() and (folder / "manifest.json").is_file()
        if artifact["runtime"] in ("transformers", "compress"):
            model = compress.load(str(folder))
            with torch.no_grad():
                assert bool(model(torch.arange(3, 30)[None]).logits.isfinite().all())
    for name_ in ("report.md", "report.html", "config.yaml", "run.log"):
        assert (output / name_).stat().st_size > 0


@pytest.mark.parametrize(
    "family",
    [
        "gpt2",
        "llama-tied",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("mistral", "qwen2", "qwen3", "smollm3", "gpt_neox")),
    ],
)
def test_the_main_job_on_every_family(family: str, text_file: Path, tmp_path: Path, cache: Path) -> None:
    from tests.models import save

    save(family, tmp_path / "model")
    more = ["stages.prune.keep=0.7", "evaluate.prompts=[]", "evaluate.speed=false"]
    report = compress.run(tiny_run("prune_distill", tmp_path / "model", text_file, tmp_path / "out", *more))
    artifact = report["artifacts"][0]
    assert artifact["verified"], artifact["error"]
    for stage in report["stages"]:
        check_prediction(stage)
    assert 0.66 < report["stages"][0]["details"]["kept_fraction"] < 0.74


def test_merged_artifact_is_dense_and_says_what_merging_cost(
    tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path
) -> None:
    from transformers import AutoModelForCausalLM

    more = ["export.hf.merge=dense", "evaluate.prompts=[]", "evaluate.speed=false"]
    report = compress.run(tiny_run("qlora", tiny_llama, text_file, tmp_path / "out", *more))
    artifact = report["artifacts"][0]
    assert artifact["verified"], artifact["error"]
    model = AutoModelForCausalLM.from_pretrained(artifact["path"])
    assert getattr(model.config, "quantization_config", None) is None
    assert artifact["mean_kl"] < 1e-3


def test_own_teacher(tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    """distill_only with a teacher of one's own: the student comes closer to it."""
    from tests.models import save

    save("llama", tmp_path / "student", seed=1)
    more = ["+model@teacher=hf", f"teacher.path={tiny_llama}", "stages.distill.train.rate=3e-3", "train.tokens=8000"]
    report = compress.run(tiny_run("distill_only", tmp_path / "student", text_file, tmp_path / "out", *more))
    curve = report["stages"][0]["details"]["curve"]
    assert curve[-1]["kl"] < 0.8 * curve[0]["kl"]
    assert report["teacher"] == tiny_llama.name
    # what the student was before is measured too: without it nobody could say what distilling did
    assert report["student"]["kl_to_teacher"] > report["final"]["kl_to_teacher"] > 0
    won = report["won_back"][0]
    assert won["kl_damaged"] == report["student"]["kl_to_teacher"] and 0 < won["fraction"] < 1
    for page in ("report.md", "report.html"):
        told = (tmp_path / "out" / page).read_text()
        assert f"teacher {tiny_llama.name}" in told and "student, untrained" in told, page
        assert "of the KL that the student began with" in told, page


def test_a_gguf_run_and_its_verification(tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    """The codes of the last stage lie in the file unchanged, and mode=verify asks llama.cpp again."""
    gguf = pytest.importorskip("gguf", reason="pip install 'compress[runtimes]'")
    pytest.importorskip("llama_cpp", reason="pip install 'compress[runtimes]'")
    more = ["evaluate.prompts=[]", "evaluate.speed=false"]
    report = compress.run(tiny_run("q4_0_gptq", tiny_llama, text_file, tmp_path / "out", *more))
    own, file = report["artifacts"]
    assert own["runtime"] == "compress" and "compress.load" in own["usage"] and own["verified"]
    assert file["runtime"] == "llama_cpp" and file["verified"] and file["emulation"]["mean_kl"] < 2e-3
    written = {t.name: t.data for t in gguf.GGUFReader(Path(file["path"]) / "model.gguf").tensors}
    stored = load_file(Path(own["path"]) / "model.safetensors")
    codes = stored["model.layers.1.mlp.down_proj.weight.blocks"].numpy()
    assert (written["blk.1.ffn_down.weight"].reshape(codes.shape) == codes).all()
    for artifact in report["artifacts"]:
        told = run_overrides(["mode=verify", f"artifact={artifact['path']}"])
        assert told["status"] == 0 and f"{artifact['runtime']} answers as it did" in told["message"]


def test_an_optional_export_is_left_out_aloud(
    tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GGUFExport, "packages", ("gguf_that_is_not_there",))
    more = ["evaluate.prompts=[]", "evaluate.speed=false"]
    overrides = tiny_run("q4_0_gptq", tiny_llama, text_file, tmp_path / "out", *more)
    report = compress.run(overrides)
    assert [artifact["name"] for artifact in report["artifacts"]] == ["hf"]
    assert "gguf_that_is_not_there" in report["left_out"]["gguf"] and "pip install" in report["left_out"]["gguf"]
    assert "LEFT OUT" in (tmp_path / "out" / "report.md").read_text()
    with pytest.raises(UserError, match="gguf_that_is_not_there"):
        compress.run([*overrides, "export.gguf.optional=false"])


def test_an_optional_export_that_cannot_say_the_result_is_left_out(
    tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path
) -> None:
    """Nothing will lie on an integer grid."""
    more = ["stages.quant.grid=q4_0", "evaluate.prompts=[]", "evaluate.speed=false"]
    report = compress.run(tiny_run("int4_gptq", tiny_llama, text_file, tmp_path / "out", *more))
    assert [artifact["name"] for artifact in report["artifacts"]] == ["hf"] and report["artifacts"][0]["verified"]
    assert "INT8 or INT4 grid" in report["left_out"]["compressed_tensors"]
    assert [folder.name for folder in (tmp_path / "out" / "artifacts").iterdir()] == ["hf"]
