"""`evaluate.measure=false`: what is larger than memory is rewritten, and no model is ever loaded whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.command import compose
from compress.config import build
from compress.errors import UserError
from compress.estimate import fits
from compress.estimate.around import measuring
from compress.export.manifest import damaged
from compress.report import card
from tests.estimate.test_predict import MACHINE, plan
from tests.pipelines.helpers import tiny_run

OFF = "evaluate.measure=false"


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("a model was loaded")


@pytest.mark.parametrize("more", [(), ("quant@stages.quant=int8",)], ids=["nf4", "int8"])
def test_no_model_is_loaded_and_the_artifact_is_that_of_a_measured_run(
    more: tuple[str, ...],
    tiny_llama: Path,
    text_file: Path,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured = compress.run(tiny_run("nf4", tiny_llama, text_file, tmp_path / "measured", *more))
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "other"))
    with monkeypatch.context() as patched:
        for place in ("runtime.loading.load_model", "export.fresh.FreshProcess", "export.deliver.FreshProcess"):
            patched.setattr(f"compress.{place}", never)
        report = compress.run(tiny_run("nf4", tiny_llama, text_file, tmp_path / "out", *more, OFF))
    (artifact,), (like,) = report["artifacts"], measured["artifacts"]
    folder = Path(artifact["path"])
    assert artifact["sha256"] == like["sha256"] and artifact["bytes"] == like["bytes"] == report["final"]["bytes"]
    assert artifact["verified"] is None and like["verified"] is True
    assert "ppl" not in report["final"] and not damaged(folder)
    files = {"report.json", "report.md", "report.html"}
    assert files <= {file.name for file in (tmp_path / "out").iterdir()}
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["artifacts"][0]["mean_kl"] is None
    page, told = (tmp_path / "out" / "report.html").read_text(), (tmp_path / "out" / "report.md").read_text()
    for text in (page, told, (folder / "README.md").read_text()):
        assert "evaluate.measure=false" in text and "FAILED" not in text
        assert not any(word in text.split() for word in ("nan", "None", "inf"))
    assert card.render(report, artifact) == (folder / "README.md").read_text()
    capsys.readouterr()


def test_the_command_line_says_that_it_is_not_measured(
    tiny_llama: Path,
    text_file: Path,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from compress.__main__ import main

    monkeypatch.setattr(sys, "argv", ["compress", *tiny_run("nf4", tiny_llama, text_file, tmp_path / "out", OFF)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    said = " ".join("".join(capsys.readouterr()).split())
    assert "written and not reloaded" in said and "nan" not in said


def test_training_goes_without_being_measured(tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path) -> None:
    report = compress.run(tiny_run("prune_heal", tiny_llama, text_file, tmp_path / "out", OFF))
    assert [stage["name"] for stage in report["stages"]] == ["prune", "compensate", "distill"]
    assert report["stages"][-1]["details"]["train_tokens"] and not report["won_back"]


def test_tasks_need_the_model() -> None:
    with pytest.raises(UserError, match=r"evaluate\.tasks=\[arc\]"):
        build(compose(["+pipeline=nf4", OFF, "evaluate.tasks=[arc]"]))


def test_a_sweep_is_refused_run_by_run(
    tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.__main__ import main

    given = tiny_run("nf4", tiny_llama, text_file, tmp_path / "sweep", OFF, "stages.quant.block=32,64")
    given = [o.replace("output=", "hydra.sweep.dir=") for o in given]
    monkeypatch.setattr(sys, "argv", ["compress", "-m", *given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    kept = [json.loads(file.read_text()) for file in (tmp_path / "sweep").rglob("run.json")]
    assert len(kept) == 2 and all("a sweep compares what its runs cost" in record["problem"] for record in kept)


def test_a_page_of_many_runs_lists_those_that_were_not_measured(
    tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path
) -> None:
    from compress.sweep.points import collect
    from compress.sweep.write import write_sweep

    for name, more in (("measured", ()), ("not", (OFF,))):
        compress.run(tiny_run("nf4", tiny_llama, text_file, tmp_path / name, *more))
    runs = collect(tmp_path)
    assert [point.folder for point in runs.points] == ["measured"]
    (left,) = runs.failures
    assert left.name == "not" and OFF in left.problem
    write_sweep(tmp_path)
    assert OFF in (tmp_path / "sweep.html").read_text()


def test_the_estimate_says_that_measuring_does_not_fit(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from compress.estimate import run

    monkeypatch.setattr(run, "machine", lambda *_, **__: replace(MACHINE, memory=1 << 29))
    given = ["+pipeline=nf4", "mode=estimate"]
    assert any("'measuring' holds" in said for said in compress.run(given)["needs"])
    assert not any("measuring" in said for said in compress.run([*given, OFF])["needs"])


def test_an_original_larger_than_memory_is_refused_unless_it_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor without bf16 the original is widened to fp32; else its file is mapped."""
    from dataclasses import replace

    config = build(compose(["+pipeline=nf4"]))
    chain = plan("+pipeline=nf4", written=True)
    params = chain.original.count()
    wide = measuring(chain, config.evaluate, replace(MACHINE, native_bf16=False))
    mapped = measuring(chain, config.evaluate, MACHINE)
    assert wide["peak_rss_bytes"] - mapped["peak_rss_bytes"] == pytest.approx(4 * params, rel=0.25)
    assert (wide["mapped_bytes"], mapped["mapped_bytes"]) == (0, pytest.approx(2 * params, rel=0.01))
    monkeypatch.setattr(fits, "memory_bytes", lambda: 2 * params)
    with pytest.raises(UserError, match="measuring the model needs about") as refused:
        fits.check_memory({}, {}, "cpu", mapped)
    assert OFF in refused.value.hint
    fits.check_memory({}, {}, "cpu", measuring(chain, build(compose(["+pipeline=nf4", OFF])).evaluate, MACHINE))
