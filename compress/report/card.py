"""The model card of an artifact: what was done, every number that can be reproduced, how to load it.

No times and no paths: the same run gives the same card.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.report import format as form
from compress.report.markdown import table


def render(report: Mapping[str, Any], artifact: Mapping[str, Any]) -> str:
    """README.md in the Hub's format."""
    from huggingface_hub import ModelCardData

    model = report["model"]
    data = ModelCardData(
        base_model=model["name"] if "/" in model["name"] and not model["name"].startswith(("/", ".")) else None,
        license=(model["licence"] or "other").lower(),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["compress", *sorted({stage["kind"] for stage in report["stages"]})],
    )
    rows = [form.row("original", report["baseline"], None)[:-1]]
    rows += [form.row(stage["name"], stage["metrics"], None)[:-1] for stage in report["stages"]]
    rows.append(form.row("this artifact", artifact["metrics"], None)[:-1])
    done = "\n".join(f"- **{stage['name']}** ({stage['kind']}): {told(stage['fields'])}" for stage in report["stages"])
    name = model["name"].rstrip("/").rpartition("/")[2]
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}, compressed by {report['pipeline']}",
        "## What was done\n\n" + done,
        "## What it cost\n\n" + table(form.HEADER[:-1], rows),
        "\n".join(f"- {sentence}" for sentence in form.fractions(report)),
        f"{report['protocol']} KL is to the original, in nats per token. Text: {report['text']['origin']}",
        "## How to load it\n\n```python\n" + loading(artifact) + "\n```",
        "## How to make it again\n\n```\n"
        + report["command"]
        + f"\n```\n\nSeed {report['seed']}, {report['threads']} threads on {report['device']}; "
        + ", ".join(f"{key} {value}" for key, value in report["versions"].items())
        + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def told(fields: Mapping[str, Any]) -> str:
    """Fields of a stage in one line; nested ones by their path."""
    found = []
    for key, value in fields.items():
        if isinstance(value, Mapping):
            found += [f"{key}.{inner}={item}" for inner, item in value.items() if not isinstance(item, Mapping)]
        elif value is not None:
            found.append(f"{key}={value}")
    return ", ".join(found)


def loading(artifact: Mapping[str, Any]) -> str:
    """Code that loads the artifact without anything of ours."""
    beside = artifact["adapter"]
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    if beside:
        lines.append("# the adapter beside the 4-bit base is applied by itself (peft and bitsandbytes are installed)")
    lines.append('model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")')
    lines.append('tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")')
    return "\n".join(lines)
