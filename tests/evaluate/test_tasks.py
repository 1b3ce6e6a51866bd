"""lm-eval's scores of local tasks against log-likelihoods computed here, and one message for each mistake."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import random

import numpy as np
import pytest
import torch
import yaml

from compress.errors import UserError
from compress.evaluate.tasks import _plain, run_tasks
from tests.models import SENTENCES, tiny, tiny_tokenizer

pytest.importorskip("lm_eval")

WORDS = sorted({word.strip(".,?") for sentence in SENTENCES for word in sentence.split()})
CHOICES = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
PARTIAL = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
# the options are contexts; one continuation is scored after each, and doc_to_text says which is right
doc_to_text: gold
doc_to_choice: context_options
doc_to_target: continuation
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def model():
    return tiny("llama")[1]


@pytest.fixture
def documents(tmp_path, monkeypatch):
    """Two task files and their data in tmp_path, nothing in the home folder."""
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    rng = random.Random(0)

    def words(low, high):
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))

    choices = [
        {"query": f"Question: {words(2, 9)}?", "choices": [words(1, 6) for _ in range(4)], "gold": rng.randrange(4)}
        for _ in range(30)
    ]
    partial = [
        {"context_options": [words(2, 7), words(2, 7)], "continuation": words(1, 5), "gold": rng.randrange(2)}
        for _ in range(24)
    ]
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, template, rows in (("some_choices", CHOICES, choices), ("some_partial", PARTIAL, partial)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(template.format(name=name, file=tmp_path / f"{name}.jsonl"))
        assert yaml.safe_load((folder / f"{name}.yaml").read_text())["task"] == name
    return str(folder), choices, partial


@torch.no_grad()
def log_likelihood(model, context, continuation):
    """Of `continuation` after `context`, by hand: no batch, no padding."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer(context + continuation)["input_ids"]
    start = len(tokenizer(context)["input_ids"])
    log_probabilities = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(log_probabilities[i - 1, ids[i]]) for i in range(start, len(ids)))


def accuracy(scores, gold):
    right = [max(range(len(s)), key=s.__getitem__) == g for s, g in zip(scores, gold, strict=True)]
    share = sum(right) / len(right)
    return share, math.sqrt(share * (1 - share) / (len(right) - 1))


@pytest.mark.parametrize("batch_size", [1, 8])
def test_scores_and_their_errors_are_those_of_the_log_likelihoods(documents, model, batch_size):
    folder, choices, partial = documents
    found = run_tasks(
        model, tiny_tokenizer(), ["some_choices", "some_partial"], include_path=folder, batch_size=batch_size
    )
    scores = [[log_likelihood(model, f"{d['query']}\nAnswer:", f" {c}") for c in d["choices"]] for d in choices]
    normed = [
        [s / len(c) for s, c in zip(row, d["choices"], strict=True)] for row, d in zip(scores, choices, strict=True)
    ]
    gold = [d["gold"] for d in choices]
    acc, acc_norm = accuracy(scores, gold), accuracy(normed, gold)
    assert acc != acc_norm
    contexts = [[log_likelihood(model, c, f" {d['continuation']}") for c in d["context_options"]] for d in partial]
    assert found == {
        "some_choices": {
            "samples": 30.0,
            "acc": pytest.approx(acc[0]),
            "acc_stderr": pytest.approx(acc[1]),
            "acc_norm": pytest.approx(acc_norm[0]),
            "acc_norm_stderr": pytest.approx(acc_norm[1]),
        },
        "some_partial": dict(
            zip(
                ("samples", "acc", "acc_stderr"),
                (24.0, *map(pytest.approx, accuracy(contexts, [d["gold"] for d in partial]))),
                strict=True,
            )
        ),
    }
    assert json.loads(json.dumps(found)) == {name: dict(scores) for name, scores in found.items()}
    assert all(type(value) is float for each in found.values() for value in each.values())


def test_a_limit_takes_the_first_ones_and_one_sample_has_no_error(documents, model):
    folder, choices, _ = documents
    found = run_tasks(model, tiny_tokenizer(), ["some_choices"], include_path=folder, limit=7)
    scores = [[log_likelihood(model, f"{d['query']}\nAnswer:", f" {c}") for c in d["choices"]] for d in choices[:7]]
    assert found["some_choices"]["acc"] == pytest.approx(accuracy(scores, [d["gold"] for d in choices[:7]])[0])
    assert found["some_choices"]["samples"] == 7
    found = run_tasks(model, tiny_tokenizer(), ["some_choices"], include_path=folder, limit=1)
    assert set(found["some_choices"]) == {"samples", "acc", "acc_norm"}


def test_what_is_no_number_is_left_out():
    scores = {
        "alias": "x",
        "sample_len": 3,
        "a,none": np.float64(0.5),
        "a_stderr,none": "N/A",
        "b,strict": float("nan"),
    }
    assert _plain(scores) == {"samples": 3.0, "a": 0.5}
    assert _plain({"b,strict": 1}) == {"b,strict": 1.0}


def test_nothing_around_it_changes(documents, model, tmp_path, capfd):
    """Random state, training mode, tokenizer, screen, and where datasets keep their copies."""
    import datasets

    folder, _, _ = documents
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.pad_token = None
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    cache = datasets.config.HF_DATASETS_CACHE
    model.train()
    capfd.readouterr()
    run_tasks(model, tokenizer, ["some_partial"], include_path=folder, limit=3, seed=5)
    assert model.training
    model.eval()
    assert tokenizer.pad_token is None
    assert len(tokenizer) == len(tiny_tokenizer())
    assert capfd.readouterr() == ("", "")
    drawn = random.random(), np.random.random(), torch.rand(1).item()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert drawn == (random.random(), np.random.random(), torch.rand(1).item())
    assert cache == datasets.config.HF_DATASETS_CACHE
    assert (tmp_path / "cache" / "datasets").is_dir()


def test_dropout_is_off(documents, model):
    folder, _, _ = documents
    dropping = tiny("llama", attention_dropout=0.9)[1].train()
    found = [run_tasks(each, tiny_tokenizer(), ["some_choices"], include_path=folder) for each in (model, dropping)]
    assert found[0] == found[1]


def test_an_unknown_task_is_answered_with_close_names(documents, model):
    folder, _, _ = documents
    with pytest.raises(UserError, match=r"(?s)'some_choice'.*Close names: some_choices.*some_choices, some_partial"):
        run_tasks(model, tiny_tokenizer(), ["some_choice"], include_path=folder)


def test_data_or_folder_missing(documents, model, tmp_path):
    folder, _, _ = documents
    (tmp_path / "some_choices.jsonl").unlink()
    with pytest.raises(UserError, match=r"(?s)some_choices could not be loaded.*absolute paths"):
        run_tasks(model, tiny_tokenizer(), ["some_choices"], include_path=folder)
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        run_tasks(model, tiny_tokenizer(), ["some_choices"], include_path=str(tmp_path / "nowhere"))


def test_without_lm_eval_the_message_names_the_extra(model, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else found(name))
    with pytest.raises(UserError, match=r"pip install -e '\.\[tasks\]'"):
        run_tasks(model, tiny_tokenizer(), ["some_choices"])
