"""What cannot work is said before the work, and what fails in it loses nothing."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

import compress
from compress.command import compose
from compress.config import build
from compress.errors import UserError
from compress.mistakes import as_user_error
from compress.pipeline import run
from compress.preparation import check_shapes
from compress.stage import Quiet
from tests.models import save, tiny_tokenizer
from tests.pipelines.helpers import tiny_run


@pytest.mark.parametrize("pipeline", ["prune_iterative", "prune_search"])
def test_healing_inside_a_stage_is_checked_before_the_work(
    pipeline: str, model: Path, text_file: Path, tmp_path: Path, cache: Path
) -> None:
    more = ["train.devices=2", "train.batch=4", "train.strategy=deepspeed"]
    with pytest.raises(UserError, match="needs CUDA"):
        compress.run(tiny_run(pipeline, model, text_file, tmp_path / "out", *more))
    store = ["stages.prune.heal.teacher_store=topk", "stages.prune.heal.teacher_k=100000"]
    with pytest.raises(UserError, match="vocabulary has"):
        compress.run(tiny_run(pipeline, model, text_file, tmp_path / "out", *store))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["+pipeline=qat_nf4", "stages.quant.activations=int8_token"], "for grid=int8"),
        (["+pipeline=qlora", "stages.recover.calibration_tokens=-5"], "at least 1"),
        (["+pipeline=prune_only", "stages.prune.multiple=0"], "at least 1"),
        (["+pipeline=distill_only", "train.optimizer.betas=[1.5,0.9]"], "refuses its arguments"),
    ],
)
def test_settings_that_make_no_sense(
    arguments: list[str], said: str, model: Path, text_file: Path, tmp_path: Path, cache: Path
) -> None:
    pipeline, *more = arguments
    with pytest.raises(UserError, match=said):
        compress.run(tiny_run(pipeline.removeprefix("+pipeline="), model, text_file, tmp_path / "out", *more))


def test_a_model_that_overflows(model: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    """Finite weights, but too large for what they are multiplied in."""
    file = model / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.down_proj.weight"].fill_(3e38)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="no finite perplexity"):
        compress.run(tiny_run("prune_only", model, text_file, tmp_path / "out"))


@pytest.mark.parametrize(
    ("pipeline", "export", "said"),
    [
        ("prune_distill", "ct=compressed_tensors", "no weights on an INT8 or INT4 grid"),
        ("prune_only", "ct=compressed_tensors", "no weights on an INT8 or INT4 grid"),
        ("nf4", "gguf=gguf export.gguf.type=q4_0", "round twice"),
        ("nf4", "onnx=onnx export.onnx.type=int8", "round twice"),
        ("qat_nf4", "pte=executorch export.pte.type=8da4w", "round twice"),
        ("mixed", "ct=compressed_tensors", "no weights on an INT8 or INT4 grid"),
        ("mixed", "ct=compressed_tensors export.ct.scheme=w8a8", "would round it twice"),
        ("mixed", "onnx=onnx export.onnx.type=int8", "a projection may lie on the grid q4_0"),
        ("int8", "onnx=onnx export.onnx.type=int8 stages.quant.embedding=q8_0", "embedding lies on the grid q8_0"),
        ("int8", "pte=executorch export.pte.type=8da4w stages.quant.embedding=q8_0", "embedding lies on the grid q8_0"),
        ("q4_0_gptq", "it=gguf export.it.type=q4_0 stages.quant.embedding=nf4", "embedding lies on the grid nf4"),
        ("prune_only", "gguf=gguf +export.gguf.tensors={mlp.downproj:q8_0}", "in the name of no weight"),
        ("nf4", "gguf=gguf +export.gguf.tensors={down_proj:q8_0}", "tensors has down_proj: q8_0"),
        ("q4_0_gptq", "g=gguf +export.g.tensors={embed:q4_0} stages.quant.embedding=nf4", "embedding lies on the grid"),
        ("prune_only", "more=hf export.more.merge=dense", "no stage here makes one"),
    ],
)
def test_what_an_export_cannot_say_is_refused_before_the_work(
    pipeline: str, export: str, said: str, model: Path, text_file: Path, tmp_path: Path, cache: Path
) -> None:
    added, *more = export.split()
    with pytest.raises(UserError, match=said):
        compress.run(tiny_run(pipeline, model, text_file, tmp_path / "out", f"+export@export.{added}", *more))
    assert not list((cache / "store").glob("evaluations/*"))


def test_an_export_that_fails_leaves_the_report_and_the_others(
    model: Path, text_file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.export.gguf.settings import GGUFExport

    def broken(*_: object) -> None:
        raise KeyError("no such opcode")

    monkeypatch.setattr(GGUFExport, "write", broken)
    report = compress.run(tiny_run("prune_only", model, text_file, tmp_path / "out", "+export@export.gguf=gguf"))
    good, bad = report["artifacts"]
    assert good["verified"] and not bad["verified"] and "KeyError" in bad["error"]
    for name in ("report.json", "report.html", "report.md"):
        assert "no such opcode" in (tmp_path / "out" / name).read_text()
    assert (tmp_path / "out" / "artifacts" / "hf" / "manifest.json").is_file()
    assert not (tmp_path / "out" / "artifacts" / "gguf").exists()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/3"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ],
)
def test_a_full_disk_in_any_words(error: Exception) -> None:
    from compress.mistakes import as_user_error

    found = as_user_error(error)
    assert found is not None and "disk is full" in found.problem


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    from compress.command import fresh_folder

    mine = tmp_path / "proj"
    assert fresh_folder(mine) == mine
    mine.mkdir()
    (mine / "artifacts").mkdir()  # of somebody who calls a folder so: no run of ours began here
    assert fresh_folder(mine) == tmp_path / "proj_2"
    (mine / "artifacts").rmdir()
    (mine / "config.yaml").write_text("mine")
    assert fresh_folder(mine) == tmp_path / "proj_2"
    (mine / "run.log").write_text("an unfinished run of ours")
    assert fresh_folder(mine) == mine
    (mine / "artifacts").mkdir()  # killed while it wrote them
    assert fresh_folder(mine) == mine
    (mine / "report.json").write_text("{}")
    assert fresh_folder(mine) == tmp_path / "proj_2"
    (mine / "report.json").unlink()
    (mine / "notes.txt").write_text("mine")
    assert fresh_folder(mine) == tmp_path / "proj_2"


@pytest.mark.parametrize("seed", [-1, 1 << 33])
def test_seeds_out_of_range(seed: int, model: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(UserError, match="seed="):
        compress.run(tiny_run("prune_only", model, text_file, tmp_path / "out", f"seed={seed}"))


def test_a_wrong_text_is_said_before_the_model_is_read(tmp_path: Path, cache: Path) -> None:
    nowhere = tiny_run("prune_only", tmp_path / "no_model", tmp_path / "no_text.txt", tmp_path / "out")
    with pytest.raises(UserError, match=r"no_text\.txt"):
        compress.run(nowhere)


def test_modes_that_run_nothing(tmp_path: Path, cache: Path) -> None:
    found = compress.run(["mode=list", "model=hf", "model.path=/nowhere", f"output={tmp_path / 'out'}"])
    assert "prune_distill" in found["message"] and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("pipeline", "said"),
    [
        *((name, "calibration window of stage 'prune'") for name in ("prune_heal", "prune_iterative", "prune_search")),
        ("nf4_gptq", r"lower stages\.quant\.calibration\.length"),
    ],
)
def test_too_little_to_calibrate_on_is_said_before_the_work(pipeline: str, said: str, model: Path, cache: Path) -> None:
    from compress.preparation import check_text

    stages = build(compose([f"+pipeline={pipeline}"])).stages
    corpus = SimpleNamespace(train=["one two three " * 4000], calibration=["one two three"])
    teacher = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=2048), tokenizer=tiny_tokenizer)
    with pytest.raises(UserError, match=said):
        check_text(stages, corpus, teacher)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pipeline", "native", "device", "told"),
    [
        ("prune_distill", False, "cpu", ["distill", "recover"]),
        ("prune_search", False, "cpu", ["prune", "distill"]),
        ("prune_distill", True, "cpu", []),
        ("prune_distill", False, "cuda", []),
    ],
)
def test_an_emulated_type_is_told_of_every_training(
    pipeline: str, native: bool, device: str, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.preparation import say_what_is_emulated

    monkeypatch.setattr("compress.preparation.native_bf16", lambda: native)
    lines: list[str] = []
    progress: Any = SimpleNamespace(say=lines.append)
    say_what_is_emulated(build(compose([f"+pipeline={pipeline}", "train.precision=bf16"])).stages, device, progress)
    assert [line.split(":")[0] for line in lines] == told
    say_what_is_emulated(build(compose([f"+pipeline={pipeline}"])).stages, device, progress)
    assert len(lines) == len(told)


def test_it_is_told_before_anything_is_written(
    model: Path, text_file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ToldError(Exception):
        pass

    def say(message: str) -> None:
        if "emulates train.precision=bf16" in message:
            raise ToldError

    monkeypatch.setattr("compress.preparation.native_bf16", lambda: False)
    progress = Quiet()
    monkeypatch.setattr(progress, "say", say)
    asked = tiny_run("distill_only", model, text_file, tmp_path / "out", "train.precision=bf16")
    with pytest.raises(ToldError):
        run(build(compose(asked)), tmp_path / "out", progress)
    assert not list((cache / "store" / "results").glob("*"))


def test_validation_on_what_is_reported_is_refused(model: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    held_out = tmp_path / "held.txt"
    held_out.write_text(text_file.read_text()[:6000])
    validated = ["train.validate_every=500", f"data.heldout_path={held_out}"]
    with pytest.raises(UserError, match="would have to be the same"):
        compress.run(
            tiny_run("distill_only", model, text_file, tmp_path / "out", *validated, "train.validate_tokens=100000")
        )


def test_a_student_with_fewer_positions(text_file: Path, tmp_path: Path, cache: Path) -> None:
    save("gpt2", tmp_path / "teacher", n_positions=128)
    save("gpt2", tmp_path / "student", n_positions=64)
    more = ["+model@teacher=hf", f"teacher.path={tmp_path / 'teacher'}", "train.length=128"]
    with pytest.raises(UserError, match=r"train\.length=128: the student has 64 positions"):
        compress.run(tiny_run("distill_only", tmp_path / "student", text_file, tmp_path / "out", *more))


def test_a_student_with_fewer_positions_is_pruned_on_shorter_windows(
    text_file: Path, tmp_path: Path, cache: Path
) -> None:
    save("gpt2", tmp_path / "teacher", n_positions=512)
    save("gpt2", tmp_path / "student", n_positions=64)
    more = ["+model@teacher=hf", f"teacher.path={tmp_path / 'teacher'}", "train.length=64", "evaluate.window=64"]
    more += ["stages.quant.calibration.length=64"]
    report = compress.run(tiny_run("prune_distill", tmp_path / "student", text_file, tmp_path / "out", *more))
    assert all(artifact["verified"] for artifact in report["artifacts"])


def test_the_stages_after_a_search_go_on_from_whatever_wins(model: Path) -> None:
    config = build(compose(["+pipeline=prune_search", "stages.prune.prune.keep=0.6"]))

    def wants_all_layers(given: Any) -> None:
        if given.num_hidden_layers < 4:
            raise UserError("too few layers.", "Take fewer away.")

    stages = {**config.stages, "last": SimpleNamespace(check=wants_all_layers)}
    with pytest.raises(UserError, match=r"If \w+ wins: too few layers(?s:.*)'~stages\.prune\.candidates\.\w+'"):
        check_shapes(stages, AutoConfig.from_pretrained(model))
    for name in ("depth", "mostly_width", "half_each"):
        del config.stages["prune"].candidates[name]
    check_shapes(stages, AutoConfig.from_pretrained(model))


def test_a_second_text_is_spoken_of_as_that(model: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    more = ["data@second=text", "second.path=nowhere.txt"]
    with pytest.raises(UserError, match=r"second\.path=FILE"):
        compress.run(tiny_run("nf4", model, text_file, tmp_path / "out", *more))


@pytest.mark.parametrize("broken", [{"quantization_config": "nf4"}, {"model_type": ["llama"]}])
def test_configs_of_another_form(
    broken: dict[str, object], model: Path, text_file: Path, tmp_path: Path, cache: Path
) -> None:
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | broken))
    with pytest.raises(UserError, match=r"already quantized|names no model_type"):
        compress.run(tiny_run("nf4", model, text_file, tmp_path / "out"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError('Could not detect "srun", are you indeed on a slurm cluster?'), "no SLURM"),
        (ConnectionError("Could not find any running Ray instance. Please specify"), "ray start --head"),
        (ValueError("COMPRESS_KERNELS='foo' is no backend: set one of reference, cpu, triton"), "no backend"),
    ],
)
def test_what_libraries_say_of_the_machine(error: Exception, said: str) -> None:
    found = as_user_error(error)
    assert found is not None and said in str(found)
    assert as_user_error(ValueError("no backend")) is None
