"""The card of an artifact is one the Hub reads, and the same whenever and wherever the run is repeated."""

from __future__ import annotations

import re
from pathlib import Path

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


@pytest.mark.parametrize(
    ("kind", "runtime", "library", "tags"),
    [
        ("hf", "transformers", "transformers", []),
        ("hf", "compress", None, []),
        ("gguf", "llama_cpp", "llama-cpp-python", ["gguf"]),
        ("onnx", "onnxruntime", None, ["onnx"]),
        ("executorch", "executorch", "executorch", ["executorch"]),
        ("compressed_tensors", "transformers", "transformers", ["compressed-tensors"]),
    ],
)
def test_it_names_the_library_that_loads_it(kind: str, runtime: str, library: str | None, tags: list[str]) -> None:
    from huggingface_hub import ModelCard

    report = full()
    report["artifacts"][0] |= {"format": kind, "runtime": runtime}
    data = ModelCard(card.render(report, report["artifacts"][0])).data
    assert data.library_name == library
    assert data.tags[5:] == tags


def test_a_local_model_is_no_base_model_of_the_hub() -> None:
    from huggingface_hub import ModelCard

    for name in ("/secret/place/model", "./model", "model"):
        read = ModelCard(rendered(name=name, hub_id=""))
        assert read.data.base_model is None
        assert read.text.lstrip().startswith("# model, compressed by")


def test_a_model_that_was_only_exported_is_not_called_compressed() -> None:
    report = full() | {"stages": []}
    text = card.render(report, report["artifacts"][0])
    assert "\n# Model-67M\n" in text and "compressed by" not in text
    assert "Nothing but the format" in text


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


def test_folders_of_the_machine_are_left_out() -> None:
    command = "python -m compress +pipeline=nf4 model.path=/home/me/models/mine 'data.path=/data/a b.txt' output=/tmp/x"
    found = card.portable(f"{command} hydra.sweep.dir=/tmp/y train.tokens=100 model.hub=org/name")
    assert found == (
        "python -m compress +pipeline=nf4 model.path=mine 'data.path=a b.txt' train.tokens=100 model.hub=org/name"
    )
    assert card.last_name("/home/me/text.jsonl") == "text.jsonl" and card.last_name("Python's docs") == "Python's docs"


def test_what_is_set_inside_a_stage_is_told_too() -> None:
    nested = {
        "prune": {"kind": "prune", "version": 5, "keep": 0.8, "bytes": None},
        "heal": {"train": {"tokens": 300, "loss": {"ce": 0.5}}},
        "kept": None,
    }
    assert card.told(nested) == "prune.keep=0.8, heal.train.tokens=300, heal.train.loss.ce=0.5"


@pytest.mark.parametrize(
    ("licence", "known", "name"),
    [
        (None, "other", None),
        ("", "other", None),
        ("Apache-2.0", "apache-2.0", None),
        ("llama3.2", "llama3.2", None),
        ("Our Own License, v2", "other", "our-own-license-v2"),
    ],
)
def test_licence(licence: str | None, known: str, name: str | None) -> None:
    from huggingface_hub import ModelCard

    data = ModelCard(rendered(licence=licence)).data
    assert (data.license, data.license_name) == (known, name)


def test_figures_are_in_the_model_index() -> None:
    """Read back by the Hub's own reader, and shaped as its specification says."""
    import yaml
    from huggingface_hub import ModelCard

    text = rendered()
    report = full()
    metrics = report["artifacts"][0]["metrics"]
    read = {(r.dataset_name, r.metric_type): r.metric_value for r in ModelCard(text).data.eval_results or []}
    assert read[("speeches", "perplexity")] == metrics["ppl"]
    assert read[("speeches", "kl_divergence")] == metrics["kl_to_teacher"]
    assert read[("text of another kind", "accuracy")] == metrics["second_top1_agreement"]
    front = yaml.safe_load(text.split("---")[1])
    (entry,) = front["model-index"]
    assert entry["name"] == "Model-67M, compressed by prune_distill"
    for result in entry["results"]:
        assert result["task"]["type"] == front["pipeline_tag"]
        assert {"name", "type"} <= result["dataset"].keys()
        assert all({"type", "value"} <= metric.keys() for metric in result["metrics"])


def test_relation_to_the_base_model() -> None:
    from huggingface_hub import ModelCard

    assert ModelCard(rendered()).data.to_dict()["base_model_relation"] == "quantized"
    report = full()
    artifact = report["artifacts"][0]
    artifact["metrics"] = artifact["metrics"] | {"bytes": artifact["metrics"]["bytes_bf16"]}
    assert ModelCard(card.render(report, artifact)).data.to_dict()["base_model_relation"] == "finetune"


def test_a_figure_that_is_not_finite_stays_out() -> None:
    from huggingface_hub import ModelCard

    report = full()
    artifact = report["artifacts"][0]
    artifact["metrics"] = artifact["metrics"] | {"ppl": float("nan")}
    read = ModelCard(card.render(report, artifact)).data.eval_results or []
    assert "perplexity" in {r.metric_type for r in read if r.dataset_name != "speeches"}
    assert "perplexity" not in {r.metric_type for r in read if r.dataset_name == "speeches"}


def test_an_artifact_too_short_for_the_windows_has_a_card(tmp_path: Path) -> None:
    """It is verified, and has no figures of quality."""
    from huggingface_hub import ModelCard

    report = full()
    artifact = report["artifacts"][0]
    artifact |= {"metrics": {}, "path": str(tmp_path)}
    card.write_cards(report)
    text = (tmp_path / "README.md").read_text()
    assert "| this artifact |  |  |  |  | 50.0M | 59.0 MB |" in text
    read = ModelCard(text).data
    assert read.to_dict()["base_model_relation"] == "quantized" and not read.eval_results
    (tmp_path / "README.md").unlink()
    artifact |= {"verified": False, "loaded": False}
    card.write_cards(report)
    assert not list(tmp_path.iterdir())
