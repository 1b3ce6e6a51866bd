"""The four sources of text: what is in which split, fingerprints, and messages."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from compress.data import Corpus, HubText, PythonDocs, TextFiles
from compress.errors import UserError

CORPUS = Corpus("name", ("ab", "c"), ("d",), ("e",), "origin")


@pytest.fixture
def rows(tmp_path):
    """A dataset folder with two splits."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for split, count in (("train", 40), ("test", 5)):
        lines = [json.dumps({"body": f"{split} {i}", "n": i}) for i in range(count)] + [
            json.dumps({"body": "", "n": 0})
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize(
    "changed",
    [
        {"train": ("a", "bc")},
        {"train": ("c", "ab")},
        {"train": ("ab",), "calibration": ("c", "d")},
        {"heldout": ("e", "")},
        {"heldout": ("f",)},
    ],
)
def test_the_fingerprint_sees_every_change_of_text_order_and_split(changed):
    assert replace(CORPUS, **changed).fingerprint != CORPUS.fingerprint


def test_the_fingerprint_is_of_the_text_alone():
    assert replace(CORPUS, name="other", origin="elsewhere").fingerprint == CORPUS.fingerprint


def test_text_files_split_a_folder_by_document(tmp_path):
    for i in range(30):
        (tmp_path / f"{i:02d}.txt").write_text(f"document {i}")
    corpus = TextFiles(path=str(tmp_path), heldout=0.1, calibration=0.2).load()
    assert [len(part) for part in (corpus.train, corpus.calibration, corpus.heldout)] == [21, 6, 3]
    assert corpus == TextFiles(path=str(tmp_path), heldout=0.1, calibration=0.2).load()
    assert corpus.fingerprint != TextFiles(path=str(tmp_path), heldout=0.1, calibration=0.2, seed=1).load().fingerprint
    assert str(tmp_path) in corpus.origin


def test_a_separate_heldout_file_is_taken_whole_and_kept_out_of_training(tmp_path):
    train, test = tmp_path / "train.jsonl", tmp_path / "test.txt"
    train.write_text("\n".join(json.dumps({"text": f"document {i}"}) for i in range(20)))
    test.write_text("document 7")
    corpus = TextFiles(path=str(train), heldout_path=str(test)).load()
    assert corpus.heldout == ("document 7",)
    assert sorted(corpus.train + corpus.calibration) == sorted(f"document {i}" for i in range(20) if i != 7)
    with pytest.raises(UserError, match="held out too"):
        TextFiles(path=str(test), heldout_path=str(test)).load()


def test_one_text_file_with_a_separate_heldout_one_loses_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("one paragraph\n\n" * 200)
    (tmp_path / "b.txt").write_text("another")
    corpus = TextFiles(path=str(tmp_path / "a.txt"), heldout_path=str(tmp_path / "b.txt")).load()
    assert corpus.train[0] + corpus.calibration[0] == "one paragraph\n\n" * 200


def test_text_files_without_a_path():
    with pytest.raises(UserError, match=r"data.path=FILE_OR_FOLDER"):
        TextFiles().load()
    with pytest.raises(UserError, match=r"data.heldout"):
        TextFiles(heldout=1.5)


def test_hub_text_reads_a_local_dataset_folder(rows, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    corpus = HubText(id=str(rows), field="body", heldout=0.1, calibration=0.1).load()
    assert sorted(corpus.train + corpus.calibration + corpus.heldout) == sorted(f"train {i}" for i in range(40))
    assert [len(corpus.calibration), len(corpus.heldout)] == [4, 4]
    corpus = HubText(id=str(rows), field="body", heldout_split="test", calibration=0.05).load()
    assert corpus.heldout == tuple(f"test {i}" for i in range(5))
    assert len(corpus.train) == 38
    with pytest.raises(UserError, match="no column 'text'; its columns are body, n"):
        HubText(id=str(rows)).load()
    with pytest.raises(UserError, match="field 'n' is not text but int"):
        HubText(id=str(rows), field="n").load()
    with pytest.raises(UserError, match=r"split 'validation', could not be loaded.*\n.*data\.split"):
        HubText(id=str(rows), split="validation", field="body").load()


def test_hub_text_that_is_not_there(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"'nobody/nothing'.*could not be loaded"):
        HubText(id="nobody/nothing").load()
    with pytest.raises(UserError, match=r"data\.id=ID"):
        HubText().load()


def test_python_docs_are_all_held_out_and_name_their_version(monkeypatch):
    corpus = PythonDocs().load()
    assert corpus.train == corpus.calibration == ()
    assert sum(map(len, corpus.heldout)) > 300_000
    assert any("lambda" in text for text in corpus.heldout)
    assert f"Python {sys.version_info[0]}.{sys.version_info[1]}" in corpus.origin
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(UserError, match="pydoc_data"):
        PythonDocs().load()
