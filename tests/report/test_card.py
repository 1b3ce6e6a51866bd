"""The card of an artifact is one the Hub reads, and the same whenever and wherever the run is repeated."""

from __future__ import annotations

import re

import pytest

from compress.report import card
from compress.report import format as form
from tests.report.sample import full


def rendered(**model: object) -> str:
    report = full()
    report["model"] |= model
    return card.render(report, report["artifacts"][0])


def test_the_hub_reads_it() -> None:
    from huggingface_hub import ModelCard

    read = ModelCard(rendered())
    assert read.data.license == "apache-2.0"
    assert read.data.base_model == "org/Model-67M"
    assert read.data.library_name == "transformers"
    assert read.data.pipeline_tag == "text-generation"
    assert read.data.tags == ["compress", "distill", "nf4", "prune", "qlora"]
    assert read.text.lstrip().startswith("# Model-67M, compressed by prune_distill")


def test_a_local_model_is_no_base_model_of_the_hub() -> None:
    from huggingface_hub import ModelCard

    for name in ("/secret/place/model", "./model", "model"):
        read = ModelCard(rendered(name=name))
        assert read.data.base_model is None
        assert read.text.lstrip().startswith("# model, compressed by")


def test_it_says_every_figure() -> None:
    text = rendered()
    for name in ("original", "prune", "distill", "quant", "recover", "this artifact"):
        assert f"| {name} |" in text
    assert all(sentence in text for sentence in form.fractions(full()))
    assert "AutoModelForCausalLM.from_pretrained" in text


def test_no_times_and_no_paths() -> None:
    text = rendered()
    assert "/secret" not in text
    assert "61 s" not in text and "2711" not in text and " min " not in text
    assert not re.search(r"\b20\d\d-\d\d", text)
    slower = full()
    slower["seconds"], slower["output"], slower["artifacts"][0]["path"] = 1.0, "/elsewhere", "/elsewhere/hf"
    slower["artifacts"][0]["load_seconds"] = 99.0
    for row in slower["stages"]:
        row |= {"seconds": 5.0, "cached": True, "peak_rss_bytes": 1}
    assert card.render(slower, slower["artifacts"][0]) == text


@pytest.mark.parametrize("licence", [None, "Apache-2.0"])
def test_licence(licence: str | None) -> None:
    from huggingface_hub import ModelCard

    assert ModelCard(rendered(licence=licence)).data.license == ("other" if licence is None else "apache-2.0")
