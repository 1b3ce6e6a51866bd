"""Mistakes a user can make: one message that says what to type, exit status 2, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import compress
from compress.errors import UserError
from tests.pipelines.helpers import tiny_run


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    return folder


def missing(model: Path) -> None:
    shutil.rmtree(model)


def no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def pickle_only(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    no_weights(model)


def truncated(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def not_a_number(model: Path) -> None:
    state = load_file(model / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})


def no_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def other_architecture(model: Path) -> None:
    config = json.loads((model / "config.json").read_text()) | {"model_type": "bloom"}
    (model / "config.json").write_text(json.dumps(config))


def fewer_tensors(model: Path) -> None:
    state = load_file(model / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})


SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (missing, "model"),
    "no weights": (no_weights, "safetensors"),
    "pickle only": (pickle_only, "safetensors"),
    "truncated": (truncated, "model.safetensors"),
    "NaN": (not_a_number, "model.layers.1.mlp.up_proj.weight"),
    "no tokenizer": (no_tokenizer, "tokenizer"),
    "other architecture": (other_architecture, "Qwen3"),
    "fewer tensors": (fewer_tensors, "model.layers.1.mlp.up_proj.weight"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_model(case: str, model: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    spoil, said = SPOILED[case]
    spoil(model)
    with pytest.raises(UserError) as caught:
        compress.run(tiny_run("nf4", model, text_file, tmp_path / "out"))
    assert said in str(caught.value)
    assert not (tmp_path / "out" / "artifacts").exists()


def test_empty_text(model: Path, tmp_path: Path, cache: Path) -> None:
    text = tmp_path / "empty.txt"
    text.write_text("")
    with pytest.raises(UserError, match=r"empty\.txt"):
        compress.run(tiny_run("nf4", model, text, tmp_path / "out"))


def test_too_short_text(model: Path, tmp_path: Path, cache: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("A few words.\n\nAnd a few more.\n\nAnd the end.")
    with pytest.raises(UserError, match="tokens"):
        compress.run(tiny_run("nf4", model, text, tmp_path / "out"))


@pytest.mark.parametrize("pipeline", ["prune_heal", "prune_iterative", "prune_search"])
def test_too_short_to_train_on_is_said_before_the_work(pipeline: str, model: Path, tmp_path: Path, cache: Path) -> None:
    """Enough to measure on in all, but no document of a training window's size."""
    text = tmp_path / "rows.jsonl"
    text.write_text("".join(json.dumps({"text": f"Row {i}."}) + "\n" for i in range(400)))
    with pytest.raises(UserError, match=r"(?s)training text is too short.*train\.length"):
        compress.run(tiny_run(pipeline, model, text, tmp_path / "out", "train.length=128"))
    assert not list((cache / "store").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["stages.prune.mlp=0.001"], "leaves nothing"),
        (["stages.prune.query_heads=0.3"], "query heads of each KV group"),
        (["stages.prune.bytes=1000"], "bytes=1000 cannot be reached"),
        (["stages.prune.latency=2"], "latency=2"),
        (["stages.prune.bytes=300000", "stages.prune.latency=0.5"], "two goals at once"),
        (["stages.prune.importance=guess"], "importance"),
    ],
)
def test_cuts_that_cannot_be(
    more: list[str], problem: str, model: Path, text_file: Path, tmp_path: Path, cache: Path
) -> None:
    with pytest.raises(UserError, match=problem):
        compress.run(tiny_run("prune_heal", model, text_file, tmp_path / "out", *more))
    assert not list((cache / "store").rglob("*.safetensors"))


def test_heads_that_the_groups_forbid(model: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    more = ["stages.prune.keep=null", "stages.prune.heads=0.3"]
    with pytest.raises(UserError, match="KV groups"):
        compress.run(tiny_run("prune_only", model, text_file, tmp_path / "out", *more))


def test_hidden_width_that_gpt2_cannot_say(text_file: Path, tmp_path: Path, cache: Path) -> None:
    from tests.models import save

    save("gpt2", tmp_path / "gpt2")
    more = ["stages.prune.keep=null", "stages.prune.hidden=0.5", "stages.prune.multiple=16"]
    with pytest.raises(UserError, match="head"):
        compress.run(tiny_run("prune_only", tmp_path / "gpt2", text_file, tmp_path / "out", *more))


def test_teacher_with_other_words(model: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    from tests.models import save

    save("llama", tmp_path / "teacher", vocab_size=400)
    more = ["+model@teacher=hf", f"teacher.path={tmp_path / 'teacher'}"]
    with pytest.raises(UserError, match=r"tokenizers.*320 and 400 entries"):
        compress.run(tiny_run("distill_only", model, text_file, tmp_path / "out", *more))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"\u0143"', '"\u0144"', "missing in the teacher's"),
        ('"add_prefix_space":false', '"add_prefix_space":true', "cut"),
    ],
)
def test_teacher_whose_tokenizer_differs_in_a_word_or_a_rule(
    old: str, new: str, said: str, model: Path, tmp_path: Path
) -> None:
    """The same size is not the same vocabulary, and the same vocabulary not the same tokens."""
    from compress.checkpoint import Checkpoint
    from compress.preparation import check_same_words

    text = json.dumps(json.loads((model / "tokenizer.json").read_text()), ensure_ascii=False, separators=(",", ":"))
    assert old in text
    teacher = tmp_path / "teacher"
    shutil.copytree(model, teacher)
    (teacher / "tokenizer.json").write_text(text.replace(old, new))
    ours, theirs = (Checkpoint(folder, frozenset()) for folder in (model, teacher))
    check_same_words(ours, ours)
    with pytest.raises(UserError, match=said):
        check_same_words(ours, theirs)


def test_cuda_that_is_not_there(model: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(UserError, match="device=cpu"):
        compress.run(tiny_run("nf4", model, text_file, tmp_path / "out", "device=cuda"))


def test_full_disk_is_foreseen(
    model: Path, text_file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="free"):
        compress.run(tiny_run("nf4", model, text_file, tmp_path / "out"))


def test_full_disk_while_writing(
    model: Path, text_file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    from compress.writer import TensorWriter

    def full(self: TensorWriter) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(self.folder))

    monkeypatch.setattr(TensorWriter, "close", full)
    with pytest.raises(UserError, match="disk is full"):
        compress.run(tiny_run("nf4", model, text_file, tmp_path / "out"))
    assert not any((cache / "store" / "unfinished").iterdir())


def test_too_little_memory_is_foreseen(
    model: Path, text_file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    memory = psutil.virtual_memory()._replace(total=1 << 20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with pytest.raises(UserError, match="memory"):
        compress.run(tiny_run("distill_only", model, text_file, tmp_path / "out"))


def test_least_squares_need_no_room_for_an_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    from compress.distill.stage import Distill
    from compress.preparation import check_memory
    from compress.prune.stage import Compensate, Prune

    memory = psutil.virtual_memory()._replace(total=10 << 30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    cut = {"prune": Prune(), "compensate": Compensate()}
    check_memory(cut, 10**9)
    with pytest.raises(UserError, match="'distill' needs about 18 GiB"):
        check_memory(cut | {"distill": Distill()}, 10**9)


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
        ("prune_only", "gguf=gguf +export.gguf.tensors={mlp.downproj:q8_0}", "in the name of no weight"),
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
    from compress.command import as_user_error

    found = as_user_error(error)
    assert found is not None and "disk is full" in found.problem


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    from compress.command import fresh_folder

    mine = tmp_path / "proj"
    assert fresh_folder(mine) == mine
    mine.mkdir()
    (mine / "config.yaml").write_text("mine")
    assert fresh_folder(mine) == tmp_path / "proj_2"
    (mine / "run.log").write_text("an unfinished run of ours")
    assert fresh_folder(mine) == mine
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


def test_out_of_memory(
    model: Path, text_file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.train import fit

    def exhausted(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(fit, "train", exhausted)
    with pytest.raises(UserError, match=r"train\.accumulate"):
        compress.run(tiny_run("distill_only", model, text_file, tmp_path / "out"))


def typed(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What a user sees who types this."""
    env = {**os.environ, "COMPRESS_CACHE": str(cwd / "cache")}
    command = [sys.executable, "-m", "compress", *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["+pipeline=prune_distil"], "prune_distill"),
        (["+pipeline=nf4", "model=hf", "model.path=nowhere"], "nowhere"),
        (["+pipeline=nf4", "data=text", "data.path=nowhere.txt", "model=hf", "model.path=MODEL"], "nowhere.txt"),
        (["+pipeline=nf4", "output=/proc/nowhere"], "output="),
        (["+pipeline=nf4", "output=a_file/below"], "output="),
        (["mode=verify"], "artifact="),
        (["-m", "+pipeline=nf4", "seed=1,2", "output=here"], "hydra.sweep.dir=DIR"),
        (["+pipeline=nf4", "model.path=MODEL"], "model=hf model.path=DIR_OR_ID"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value[-1],
)
def test_command_line_exits_with_2_and_one_message(
    arguments: list[str], said: str, tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "a_file").write_text("x")
    done = typed(*(a.replace("MODEL", str(tiny_llama)) for a in arguments), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr + done.stdout
    assert done.stderr.count("error:") == 1


def test_alone_it_lists_the_pipelines(tmp_path: Path) -> None:
    done = typed(cwd=tmp_path)
    assert done.returncode == 0 and "+pipeline=prune_distill" in done.stdout
    assert not (tmp_path / "outputs").exists()


def test_help_is_fast(tmp_path: Path) -> None:
    import importlib.util
    import resource

    typed("--help", cwd=tmp_path)
    # processor time, so that a busy machine does not fail the test; it is all the time there is on an idle one.
    # Hydra imports every plug-in that is installed (ray's and Optuna's take longest) before it answers
    limit = 2 if importlib.util.find_spec("hydra_plugins") is None else 5
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = typed("--help", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < limit
    assert done.returncode == 0 and "stages.prune.keep" in done.stdout and "_schema" not in done.stdout


def test_a_sweep_of_estimates(tiny_llama: Path, tmp_path: Path) -> None:
    done = typed(
        "-m",
        "+pipeline=nf4",
        "stages.quant.block=32,64",
        "model=hf",
        f"model.path={tiny_llama}",
        "mode=estimate",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("report.json"))


@pytest.mark.slow
def test_a_sweep_reports_a_failed_job_and_goes_on(
    tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path
) -> None:
    overrides = [o for o in tiny_run("nf4", tiny_llama, text_file, tmp_path) if not o.startswith("output=")]
    done = typed(
        "-m", *overrides, "stages.quant.block=48,64", "evaluate.prompts=[]", "evaluate.speed=false", cwd=tmp_path
    )
    assert done.returncode == 2 and "48" in done.stderr
    assert len(list(tmp_path.rglob("report.json"))) == 1
