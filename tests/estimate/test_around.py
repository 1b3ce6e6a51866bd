"""What a run does around its stages takes time too."""

from __future__ import annotations

import pytest

import compress
from compress.command import compose
from compress.config import build
from compress.estimate.around import around
from compress.estimate.predict import Plan
from compress.estimate.show import show_estimate
from tests.estimate.test_predict import MACHINE, embedded


def seconds(*overrides: str) -> dict[str, float]:
    config = build(compose(["+pipeline=prune_distill", *overrides]))
    own = config.own_text
    plan = Plan(config.stages, embedded(), embedded(), config.evaluate.tokens, own.tokens, own.length, True)
    return around(plan, config.evaluate, config.export, MACHINE)


def test_every_artifact_has_its_time_and_tracing_costs_most() -> None:
    found = seconds("+export@export.gguf=gguf", "+export@export.onnx=onnx", "+export@export.pte=executorch")
    assert list(found) == ["measuring", "artifact hf", "artifact gguf", "artifact onnx", "artifact pte"]
    assert found["artifact hf"] == found["artifact gguf"] < found["artifact onnx"] < found["artifact pte"]


def test_half_the_text_takes_half_the_time() -> None:
    quiet = ("evaluate.speed=false", "evaluate.prompts=[]")
    whole, half = (seconds(*quiet, f"evaluate.tokens={tokens}")["measuring"] for tokens in (65536, 32768))
    assert whole == pytest.approx(2 * half)
    # the original and five stages, two texts each: layers and two products with the head, 2 operations a weight
    assert whole == pytest.approx(6 * 2 * 65536 * 2 * 150e6 / (0.5 * MACHINE.bf16), rel=0.25)


def test_speed_and_answers_are_counted() -> None:
    assert seconds("evaluate.speed=false")["measuring"] < seconds()["measuring"]
    assert seconds("evaluate.answer_tokens=8")["measuring"] < seconds("evaluate.answer_tokens=80")["measuring"]


def test_what_is_not_measured_takes_no_time() -> None:
    found = seconds("evaluate.measure=false")
    assert list(found) == ["artifact hf"] and 0 < found["artifact hf"] < seconds()["artifact hf"]


def test_the_terminal_gives_the_sum(capsys: pytest.CaptureFixture[str], cache: object) -> None:
    del cache
    report = compress.run(["+pipeline=qlora", "mode=estimate"])
    show_estimate(report)
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert {"measuring", "artifact hf", "in all"} <= lines.keys()
    assert sum(stage["seconds"] for stage in report["stages"]) > 0 < report["around"]["artifact hf"]
