"""The model card of an artifact: what was done, every number that can be reproduced, how to load it.

The header is the Hub's (https://huggingface.co/docs/hub/model-cards): base model, inherited licence, tags, and the
figures as a model index. No times, and no folders of the machine it was made on: the same run gives the same card.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.report import format as form
from compress.report.markdown import table

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

_LICENCES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
    other
"""
LICENCES = frozenset(_LICENCES.split())
"""What the Hub takes as `license` (https://huggingface.co/docs/hub/repositories-licenses); others are `other`."""
METRICS = (
    ("ppl", "perplexity", "perplexity"),
    ("kl_to_teacher", "kl_divergence", "KL to the original, nats per token"),
    ("top1_agreement", "accuracy", "top-1 agreement with the original"),
)
"""Figure, its type in the model index, its name there."""


LIBRARIES = {
    "transformers": "transformers",
    "llama_cpp": "llama-cpp-python",
    "executorch": "executorch",
}
"""Runtime -> its name in the Hub's list of libraries (huggingface.js, model-libraries.ts); others are not in it."""
FORMAT_TAGS = {"gguf": "gguf", "onnx": "onnx", "executorch": "executorch", "compressed_tensors": "compressed-tensors"}

UNCHANGED = "Nothing but the format: no stage changed the weights, and a smaller format rounds them."


def render(report: Mapping[str, Any], artifact: Mapping[str, Any]) -> str:
    """README.md in the Hub's format.

    Raises:
        ValueError: the header would not come back from the Hub's own reader as it is.
    """
    from huggingface_hub import ModelCard

    model = report["model"]
    rows = [form.row(form.compared_with(report), report["baseline"], None)[:-1]]
    rows += [form.row(stage["name"], stage["metrics"], None)[:-1] for stage in report["stages"]]
    rows.append(form.row("this artifact", form.figures_of(report, artifact), None)[:-1])
    done = "\n".join(f"- **{stage['name']}** ({stage['kind']}): {told(stage['fields'])}" for stage in report["stages"])
    data = header(report, artifact)
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {title(report)}",
        "## What was done\n\n" + (done or UNCHANGED),
        "## What it cost\n\n" + table(*form.filled(form.HEADER[:-1], rows)),
        "\n".join(f"- {sentence}" for sentence in form.healing(report)),
        measured_on(report),
        "## How to load it\n\n```python\n" + loading(artifact) + "\n```",
        "## How to make it again\n\n```\n"
        + portable(report["command"])
        + f"\n```\n\nSeed {report['seed']}, {report['threads']} threads on {report['device']}; "
        + ", ".join(f"{key} {value}" for key, value in report["versions"].items())
        + ".",
        f"Licence: that of the original ({model['licence'] or 'not stated'}).",
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    if str(ModelCard(text).data) != str(data):
        raise ValueError(f"the card of {artifact['name']} does not come back as it was written")
    return text


def measured_on(report: Mapping[str, Any]) -> str:
    """Protocol and text; where nothing was measured, that."""
    if "ppl" not in report["baseline"]:
        return f"{report['protocol']} It was not reloaded either."
    return f"{report['protocol']} KL is to the original, in nats per token. Text: {last_name(report['text']['origin'])}"


def title(report: Mapping[str, Any]) -> str:
    """What the artifact is."""
    name: str = report["model"]["name"].rstrip("/").rpartition("/")[2]
    return f"{name}, compressed by {report['pipeline']}" if report["stages"] else name


def header(report: Mapping[str, Any], artifact: Mapping[str, Any]) -> ModelCardData:
    """What the Hub reads."""
    from huggingface_hub import ModelCardData

    base = report["model"]["hub_id"] or None
    known, name = licence(report["model"]["licence"])
    related: dict[str, Any] = {"base_model_relation": relation(form.figures_of(report, artifact))} if base else {}
    return ModelCardData(
        base_model=base,
        library_name=LIBRARIES.get(artifact["runtime"]),
        pipeline_tag="text-generation",
        tags=["compress", *sorted({stage["kind"] for stage in report["stages"]}), *tags_of(artifact)],
        model_name=title(report),
        eval_results=index(report, artifact),
        license=known,
        license_name=name,
        **related,
    )


def tags_of(artifact: Mapping[str, Any]) -> list[str]:
    """By which the Hub finds files of a format."""
    return [FORMAT_TAGS[artifact["format"]]] if artifact["format"] in FORMAT_TAGS else []


def relation(figures: Mapping[str, Any]) -> str:
    """How the Hub lists it under its base model; fewer bytes than its own parameters take in bf16 are quantized."""
    return "quantized" if figures["bytes"] < 0.95 * figures["bytes_bf16"] else "finetune"


def licence(name: str | None) -> tuple[str, str | None]:
    """The original's licence in the Hub's words: one that it does not know is `other`, with its own name."""
    said = (name or "").strip()
    if said.lower() in LICENCES:
        return said.lower(), None
    words = re.sub(r"[^a-z0-9.+]+", "-", said.lower()).strip("-")
    return "other", words or None


def index(report: Mapping[str, Any], artifact: Mapping[str, Any]) -> list[EvalResult]:
    """The artifact's figures on both texts."""
    from huggingface_hub import EvalResult

    found = []
    text = report["text"]
    for prefix, name, kind in (("", text["name"], slug(text["name"])), ("second_", "text of another kind", "other")):
        for figure, metric, called in METRICS:
            value = artifact["metrics"].get(prefix + figure)
            if value is not None and math.isfinite(value):
                found.append(
                    EvalResult(
                        task_type="text-generation",
                        task_name="Text Generation",
                        dataset_type=kind,
                        dataset_name=name,
                        metric_type=metric,
                        metric_name=called,
                        metric_value=value,
                    )
                )
    return found


def slug(text: str) -> str:
    """A dataset's type: letters, digits and dashes."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-") or "text"


def told(fields: Mapping[str, Any]) -> str:
    """Fields of a stage in one line; nested ones by their path."""
    return ", ".join(f"{key}={value}" for key, value in leaves(fields))


def portable(command: str) -> str:
    """The command without what only this machine has: no folder of results, and of other folders the last name."""
    settings = [part.partition("=") for part in shlex.split(command)]
    kept = [setting for setting in settings if setting[0] != "output" and not setting[0].startswith("hydra.")]
    return " ".join(shlex.quote(f"{key}{equals}{last_name(value)}") for key, equals, value in kept)


def last_name(text: str) -> str:
    """Of an absolute path, the last part."""
    return Path(text).name if Path(text).is_absolute() else text


def leaves(fields: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """What is set, by its path; what kind of stage a nested one is, is in its name."""
    for key, value in fields.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{path}{key}.")
        elif value is not None and not (path and key in ("kind", "version")):
            yield f"{path}{key}", value


def loading(artifact: Mapping[str, Any]) -> str:
    """Code that loads the artifact."""
    if not artifact["adapter"]:
        return str(artifact["usage"])
    return (
        "# the adapter beside the 4-bit base is applied by itself (peft and bitsandbytes are installed)\n"
        + artifact["usage"]
    )


def write_cards(report: Mapping[str, Any]) -> None:
    """README.md of every artifact that runs."""
    for artifact in report["artifacts"]:
        if form.runs(artifact):
            (Path(artifact["path"]) / "README.md").write_text(render(report, artifact), encoding="utf-8")
