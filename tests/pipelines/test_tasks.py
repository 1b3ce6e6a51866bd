"""lm-eval tasks of one's own, before and after, with standard errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import compress
from tests.pipelines.helpers import tiny_run

TASK = """task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


def test_tasks_are_in_the_report(
    tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": f"The number {i}", "choices": [" one", " two", " three"], "answer": i % 3} for i in range(12)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tiny.yaml").write_text(TASK.format(file=folder / "data.jsonl"))
    more = ["evaluate.tasks=[tiny_choice]", f"evaluate.tasks_path={folder}", "evaluate.prompts=[]"]
    report = compress.run(tiny_run("nf4", tiny_llama, text_file, tmp_path / "out", *more))
    for part in ("baseline", "final"):
        scores = report[part]["tasks"]["tiny_choice"]
        assert 0 <= scores["acc"] <= 1 and scores["acc_stderr"] > 0
    assert "tiny_choice" in (tmp_path / "out" / "report.md").read_text()
