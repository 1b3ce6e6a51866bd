"""Sweeps as they are typed: with every launcher, with failures, killed and repeated, and as a search."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.config import share_of_threads
from tests.pipelines.helpers import FAST, calibrated_briefly
from tests.pipelines.test_store_and_resume import artifact_bytes, wait_for_progress

QUIET = ("evaluate.prompts=[]", "own_text.tokens=128", "evaluate.tokens=128")
LAUNCHERS = {"joblib": "joblib", "submitit_local": "submitit", "ray": "ray"}


class Typed:
    """What is typed for sweeps on one tiny model, with one cache."""

    def __init__(self, model: Path, text: Path, root: Path, cache: Path) -> None:
        self.root = root
        # as many threads as the launcher gives: threads=1 would hide what it does
        fast = [setting for setting in FAST if not setting.startswith(("threads", "evaluate.tokens", "own_text"))]
        self.common = ["model=hf", f"model.path={model}", "data=text", f"data.path={text}", *fast, *QUIET]
        self.env = {**os.environ, "COMPRESS_CACHE": str(cache), "RAY_AUTH_MODE": "disabled"}

    def command(self, folder: str, *more: str) -> list[str]:
        where = f"hydra.sweep.dir={self.root / folder}"
        pipeline = next(given.removeprefix("+pipeline=") for given in more if given.startswith("+pipeline="))
        short = calibrated_briefly(pipeline, more)
        return [sys.executable, "-m", "compress", "-m", *self.common, where, *short, *more]

    def run(self, folder: str, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(folder, *more), env=self.env, capture_output=True, text=True, check=False, timeout=900
        )

    def reports(self, folder: str) -> dict[str, dict[str, Any]]:
        return {file.parent.name: json.loads(file.read_text()) for file in (self.root / folder).glob("*/report.json")}

    def rows(self, folder: str) -> list[dict[str, str]]:
        with (self.root / folder / "sweep.csv").open() as opened:
            return list(csv.DictReader(opened))


@pytest.fixture
def typed(tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path) -> Typed:
    return Typed(tiny_llama, text_file, tmp_path, cache)


@pytest.fixture(params=["", *(pytest.param(name, marks=pytest.mark.slow) for name in LAUNCHERS)])
def launcher(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if name:
        plugin = f"hydra_plugins.hydra_{LAUNCHERS[name]}_launcher"
        pytest.importorskip(plugin, reason=f"no {LAUNCHERS[name]} launcher here (pip install -e '.[sweeps]')")
    return name


def test_a_failed_run_is_told_and_the_rest_goes_on(typed: Typed, launcher: str) -> None:
    """Two runs that share their pruning and one that is refused: one by one, and with every launcher."""
    launch = [f"+launch={launcher}"] if launcher else ["threads=1"]
    blocks = "stages.quant.block=32,64,48"
    done = typed.run("sweep", "+pipeline=prune_only", "+quant@stages.quant=nf4", blocks, *launch)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "1 of 3 runs failed" in done.stderr and "block=48 is not a block size" in done.stderr
    reports = typed.reports("sweep")
    assert sorted(reports) == ["0", "1"]
    # what they share was computed once, whoever came first
    for stage in (0, 1):
        assert sorted(report["stages"][stage]["cached"] for report in reports.values()) == [False, True]
    assert not any(report["stages"][2]["cached"] for report in reports.values())
    records = [json.loads((typed.root / "sweep" / str(n) / "run.json").read_text()) for n in range(3)]
    assert [record["state"] for record in records] == ["done", "done", "failed"]
    if launcher:
        assert len({record["process"] for record in records[:2]}) == 2
        assert {report["threads"] for report in reports.values()} == {share_of_threads(2)}
        assert f"{share_of_threads(2)} thread(s) each" in done.stderr
    rows = typed.rows("sweep")
    assert [row["stages.quant.block"] for row in rows[:2]] == ["32", "64"] and "block=48" in rows[2]["problem"]
    assert [float(row["kl_to_teacher"]) for row in rows[:2]] == [
        reports[name]["final"]["kl_to_teacher"] for name in ("0", "1")
    ]
    assert "sweep.html" in done.stdout and (typed.root / "sweep" / "sweep.html").is_file()


def test_if_all_fail_there_is_no_page(typed: Typed) -> None:
    done = typed.run("sweep", "+pipeline=nf4", "stages.quant.block=48,49")
    assert done.returncode == 2 and "2 of 2 runs failed" in done.stderr
    assert "Traceback" not in done.stderr and not (typed.root / "sweep" / "sweep.html").exists()


@pytest.mark.slow
def test_killed_in_the_middle_and_repeated(typed: Typed, fresh_cache: Callable[[Path], Path]) -> None:
    """The repeated sweep goes on inside the training it was killed in, trains nothing twice, and ends in the same."""
    more = ["+pipeline=prune_distill", "+sweep=bits", "quant@stages.quant=int8,nf4", "threads=1"]
    more += ["train.tokens=24000", "stages.distill.train.checkpoint_seconds=0.01"]
    process = subprocess.Popen(
        typed.command("sweep", *more), env=typed.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for_progress(typed.root / "cache", 0.3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not typed.reports("sweep")
    done = typed.run("sweep", *more)
    assert done.returncode == 0, done.stderr
    assert "goes on at step" in done.stderr
    reports = typed.reports("sweep")
    assert [reports[name]["stages"][2]["details"]["resumed_at_step"] > 0 for name in ("0", "1")] == [True, True]
    assert [stage["cached"] for stage in reports["1"]["stages"]] == [True, True, True, False]
    # undisturbed, from nothing: the same bytes
    typed.env["COMPRESS_CACHE"] = str(fresh_cache(typed.root / "cache_undisturbed"))
    assert typed.run("undisturbed", *more).returncode == 0
    for name in ("0", "1"):
        pair = (typed.root / folder / name / "artifacts/hf" for folder in ("sweep", "undisturbed"))
        assert artifact_bytes(next(pair)) == artifact_bytes(next(pair))
    shutil.rmtree(typed.root / "undisturbed")


@pytest.mark.slow
def test_the_rest_goes_on_when_a_worker_is_killed(typed: Typed) -> None:
    """As the system does it for want of memory: every time the run is tried it dies; the others end as they would."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="no joblib here (pip install -e '.[sweeps]')")
    victim = typed.root / "sitecustomize.py"
    victim.write_text(
        "import os, signal, sys\n"
        "def kill(frame, event, _):\n"
        "    name = frame.f_code.co_name\n"
        "    if name == 'execute' and 'stages.quant.block=64' in frame.f_locals.get('overrides', ()):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "import threading\n"
        "sys.setprofile(kill)\n"
    )
    typed.env["PYTHONPATH"] = str(typed.root)
    done = typed.run("sweep", "+pipeline=nf4", "stages.quant.block=32,64,128", "+launch=joblib", "sweep.workers=2")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr and "1 of 3 runs failed" in done.stderr, done.stderr
    assert "its process was killed" in done.stderr and sorted(typed.reports("sweep")) == ["0", "2"]


@pytest.mark.slow
def test_a_search_goes_on_from_its_storage(typed: Typed) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="no optuna here (pip install -e '.[sweeps]')")
    import optuna

    # blocks that a model of this width has
    more = ["+pipeline=prune_distill", "+sweep=optuna", "hydra.sweeper.n_trials=2", "train.tokens=500", "threads=1"]
    more += ["stages.quant.block=choice(32,64)"]
    for _ in range(2):
        done = typed.run("search", *more)
        assert done.returncode == 0, done.stderr
    study = optuna.load_study(study_name="prune_distill", storage=f"sqlite:///{typed.root / 'search' / 'study.db'}")
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MINIMIZE", "MAXIMIZE"]
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4
    told = {tuple(trial.values) for trial in study.trials}
    finals = [report["final"] for report in typed.reports("search").values()]
    assert told == {(f["kl_to_teacher"], f["bytes"], f["speed"]["decode_tokens_per_second"]) for f in finals}
    # the runs of the first search stay beside those of the second, and the page has them all
    rows = typed.rows("search")
    assert len(rows) == 4
    keeps = {float(row["stages.prune.keep"]) for row in rows}
    assert keeps == {trial.params["stages.prune.keep"] for trial in study.trials}
    # pruning less and less is what was searched: the runs differ
    assert len(keeps) == 4


@pytest.mark.slow
def test_a_stage_in_several_processes_belongs_to_its_run(typed: Typed, tiny_student: Path) -> None:
    """No process of a training starts the sweep, or the pipeline, again; both runs end within rounding."""
    teacher = typed.common[1].removeprefix("model.path=")
    swept = ["+pipeline=distill_only", f"model.path={tiny_student}", "+model@teacher=hf", f"teacher.path={teacher}"]
    few = ["train.tokens=1024", "train.precision=fp32", "threads=2"]
    done = typed.run("sweep", *swept, *few, "train.devices=1,2")
    assert done.returncode == 0, done.stderr
    folders = sorted(path.parent for path in typed.root.rglob("run.json"))
    assert folders == [typed.root / "sweep" / number for number in "01"]
    reports = typed.reports("sweep")
    one, two = (reports[number]["stages"][0] for number in "01")
    assert not one["cached"] and not two["cached"] and one["key"] != two["key"]
    assert two["metrics"]["kl_to_teacher"] == pytest.approx(one["metrics"]["kl_to_teacher"], rel=1e-3)
    assert [p["kl"] for p in two["details"]["curve"]] == pytest.approx(
        [p["kl"] for p in one["details"]["curve"]], rel=1e-3
    )


@pytest.fixture
def tiny_student(tmp_path: Path) -> Path:
    """Another tiny Llama, with the same tokenizer."""
    from tests.models import save

    save("llama", tmp_path / "student", seed=1)
    return tmp_path / "student"
