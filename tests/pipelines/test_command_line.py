"""What a user sees who types a command: one message, and the exit status that goes with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from compress.__main__ import flags_first, main
from compress.command import LOCK, alone_in, fresh_folder
from compress.errors import UserError
from tests.pipelines.helpers import tiny_run


def typed(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What a user sees who types this."""
    env = {**os.environ, "COMPRESS_CACHE": str(cwd / "cache")}
    command = [sys.executable, "-m", "compress", *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def typed_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[list[str]], tuple[object, str, str]]:
    """The same in this process: exit status, standard output, standard error."""

    def run(arguments: list[str]) -> tuple[object, str, str]:
        monkeypatch.chdir(tmp_path)
        for name, value in (("COMPRESS_CACHE", str(tmp_path / "cache")), ("HYDRA_FULL_ERROR", "1")):
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["compress", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run


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
        (["+pipeline=nf4", "data=text", "data.path=größe.txt"], 'data.path="größe.txt"'),
        (["+pipeline=nf4", "data.path=a,b.txt"], 'data.path="a,b.txt"'),
        (["+pipeline=nf4", "quant@stages.quant=null"], "~stages.NAME"),
        (["+pipeline=nf4", "second=text"], "data@second=text"),
        (["+pipeline=nf4", "+teacher=DIR"], "+model@teacher=hf"),
        (["+pipeline=nf4", "stages.prune.keep=0.8"], "no stage 'prune'"),
        (["-m", "+pipeline=nf4", "+sweep=pareto"], "no stage 'prune'"),
        (["+pipeline=nf4", "stages.quant.blok=32"], "no setting 'blok' in stages.quant.\nDid you mean block?"),
        (["+pipeline=qat_mixed", "stages.quant.scaling=smooth"], "'scaling' in stages.quant.\nThe same command"),
        (["+pipeline=nf4", "sed=1"], "Did you mean seed"),
        # a plus makes Hydra take any name
        (["+pipeline=nf4", "+model.path=DIR"], "no setting 'path' in model.\nA model of yours is model=hf"),
        (["+pipeline=nf4", "+seeds=3"], "no setting 'seeds'.\nDid you mean seed?"),
        (["+pipline=nf4"], "Did you mean +pipeline?"),
        (["+pipeline=prune_heal", "+stages.distill.train.token=5"], "in stages.distill.train.\nDid you mean tokens?"),
        (["+pipeline=nf4", "+export=gguf"], "+export@export.NAME=FORMAT"),
        (["+pipeline=nf4", "export=gguf"], "+export@export.NAME=FORMAT"),
        (["+pipeline=nf4", "+quant=int8"], "quant@stages.NAME=OPTION"),
        (["+pipeline=nf4", "bits=4"], "stages.NAME.SETTING"),
        (["+pipeline=nf4", "mode=verfy"], "Did you mean mode=verify?"),
        (["+pipeline=nf4", "seed=abc"], "a whole number is expected"),
        (["+pipeline=prune_heal", "stages.prune.keep=85%"], "0.85"),
        (["+pipeline=nf4", "evaluate.speed=maybe"], "evaluate.speed=true or evaluate.speed=false"),
        (["+pipeline=nf4", "train.loggers=csv"], "Type 'train.loggers=[csv]'"),
        (["+pipeline=nf4", "own_text=0"], "own_text.NAME=VALUE"),
        (["+pipeline=q4_0_gptq", "+export@export.gguf=gguf"], "Without the plus"),
        (["+pipeline=nf4", "~stages.distil"], "no stages.distil to leave out"),
        (["+pipeline=nf4", "teacher.path=DIR"], "+model@teacher=hf"),
        (["+pipeline=nf4", "+model@teacher=hf"], "Add teacher.path=DIR_OR_ID"),
        (["+pipeline=nf4", "output="], "output= names no folder"),
        (["+pipeline=nf4", "+quant@stages.again=nf4", "stages.again.block=48"], "stages.again.block=48 is not"),
        (["+pipeline=prune_search", "stages.prune.prune.keep=2"], "stages.prune.prune.keep=2.0: it is"),
        (["+pipeline=nf4", "data@second=sotu", "second.heldout=0"], "second.heldout is a number"),
        (["+pipeline=nf4", "export.gguf.type=q8_0"], "+export@export.gguf=FORMAT"),
        (["+pipeline=nf4", "quant@stages.q=int8"], "To add it: +quant@stages.q=int8."),
        (["+pipeline=nf4", "+sweep=bits"], "Put -m in front"),
        (["+pipeline=nf4", "+launch=joblib", "seed=1"], "Put -m in front"),
        (["+pipeline=nf4", "stages.quant.block=32,64"], "Several values are a sweep"),
        (["+pipeline=nf4", "-m", "output=here"], "hydra.sweep.dir=DIR"),
        (["-m", "+pipeline=prune_search", "+sweep=ratio"], "stages.prune.prune.keep"),
        (["+pipeline=distill_only", "+prune@stages.compensate=compensate"], "typed before"),
        (["prune_distil"], "Did you mean +pipeline=prune_distill?"),
        (["+pipeline=nf4", "threads=100000"], "from 1 to 4096"),
        (["+pipeline=nf4", "evaluate.tasks_limit=0"], "at least 1"),
        (["+pipeline=qat_nf4", "stages.quant.scale_rate=inf"], "and a number"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value[-1],
)
def test_command_line_exits_with_2_and_one_message(
    arguments: list[str],
    said: str,
    tiny_llama: Path,
    tmp_path: Path,
    typed_here: Callable[[list[str]], tuple[object, str, str]],
) -> None:
    (tmp_path / "a_file").write_text("x")
    status, out, err = typed_here([a.replace("MODEL", str(tiny_llama)) for a in arguments])
    assert status == 2, err
    assert said in err and "Traceback" not in err + out
    assert err.count("error:") == 1


def test_a_process_of_its_own_says_the_same(tmp_path: Path) -> None:
    done = typed("+pipeline=nf4", "stages.prune.keep=0.8", cwd=tmp_path)
    assert done.returncode == 2 and "no stage 'prune'" in done.stderr and "Traceback" not in done.stderr + done.stdout
    assert done.stderr.count("error:") == 1 and not done.stdout


def test_flags_may_stand_anywhere() -> None:
    typed_in = ["+pipeline=nf4", "-m", "seed=1,2", "--config-dir", "DIR", "~stages.quant", "--help", "seed=1,2"]
    flags = ["-m", "--config-dir", "DIR", "--help"]
    assert flags_first(typed_in) == [*flags, "+pipeline=nf4", "seed=1,2", "~stages.quant", "seed=1,2"]


def test_a_folder_is_held_while_its_run_goes(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    assert fresh_folder(folder) == folder
    with alone_in(folder):
        assert fresh_folder(folder) == tmp_path / "out_2"
        with pytest.raises(UserError, match="another run writes"), alone_in(folder):
            pass
        assert fresh_folder(folder) == tmp_path / "out_2"
    assert fresh_folder(folder) == folder and not list(folder.iterdir())
    (folder / LOCK).touch()  # of a run that was killed
    assert fresh_folder(folder) == folder


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

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = spent()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    torch_alone = spent() - before
    done = typed("--help", cwd=tmp_path)
    # on a slow processor everything takes longer: importing torch is 1.3 s of a fast one's
    assert spent() - before - torch_alone < limit * max(1.0, torch_alone / 1.3)
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
    assert [path.name for path in tmp_path.iterdir()] in ([], ["cache"])


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
