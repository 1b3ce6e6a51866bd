"""Splits partition the documents, repeat by seed, and never put one text in two splits."""

from __future__ import annotations

import random

import pytest

from compress.data.split import check_fractions, cut_near, share, split_documents
from compress.errors import UserError


@pytest.mark.parametrize("count", [3, 4, 7, 20, 101])
@pytest.mark.parametrize("seed", [0, 1])
def test_whole_documents_are_partitioned_in_their_order(count, seed):
    rng = random.Random(count)
    documents = [f"document {i} " + "x" * rng.randrange(500) for i in range(count)]
    split = split_documents(documents, heldout=0.1, calibration=0.2, seed=seed)
    assert sorted(split.train + split.calibration + split.heldout) == sorted(documents)
    assert len(split.heldout) == max(1, round(0.1 * count))
    assert len(split.calibration) == max(1, round(0.2 * count))
    for part in split:
        assert list(part) == sorted(part, key=documents.index)
    assert max(documents, key=len) in split.train
    assert split == split_documents(documents, heldout=0.1, calibration=0.2, seed=seed)


def test_another_seed_holds_out_others():
    documents = [f"document {i}" for i in range(100)]
    assert len({split_documents(documents, heldout=0.1, calibration=0.1, seed=s).heldout for s in range(5)}) == 5


def test_copies_do_not_leak():
    documents = [f"document {i % 10}" for i in range(50)]
    split = split_documents(documents, heldout=0.3, calibration=0.2, seed=0)
    assert sorted(split.train + split.calibration + split.heldout) == sorted(set(documents))


@pytest.mark.parametrize("count", [1, 2])
def test_few_documents_are_cut_at_paragraphs_with_the_end_held_out(count):
    paragraph = "A sentence of some words. Another one. " * 5
    documents = ["\n\n".join(f"{d} {i} {paragraph}" for i in range(200)) for d in range(count)]
    split = split_documents(documents, heldout=0.1, calibration=0.05, seed=3)
    assert len(split.train) == len(split.calibration) == len(split.heldout) == count
    for document, train, calibration, heldout in zip(documents, *split, strict=True):
        assert train + calibration + heldout == document
        assert train.endswith("\n\n")
        assert calibration.endswith("\n\n")
        assert len(heldout) / len(document) == pytest.approx(0.1, abs=0.01)
        assert len(calibration) / len(document) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("separator", ["\n", ". ", " ", ""])
def test_a_text_without_paragraphs_is_cut_at_the_next_best_place(separator):
    document = separator.join(f"w{i:04d}" for i in range(2000))
    split = split_documents([document], heldout=0.1, calibration=0.1, seed=0)
    assert "".join(part[0] for part in split) == document
    assert split.train[0].endswith(separator)
    assert 0.08 <= len(split.heldout[0]) / len(document) <= 0.16


def test_nothing_is_held_out_where_none_is_asked_for():
    split = split_documents(["one\n\n" * 100], heldout=0, calibration=0.1, seed=0)
    assert split.heldout == ()
    assert "".join(split.train + split.calibration) == "one\n\n" * 100
    assert split_documents(["a", "b", "c"], heldout=0, calibration=0.1, seed=0).heldout == ()


def test_a_cut_prefers_paragraphs_to_what_is_nearer():
    assert cut_near("aa\n\nbb bb. bb\nbb cc", 16, 16) == 4
    assert cut_near("aa\n\nbb bb. bb\nbb cc", 16, 10) == 14
    assert cut_near("abcdef", 3, 3) == 3


@pytest.mark.parametrize(("heldout", "calibration"), [(0, 0.1), (0.1, -1), (0.5, 0.1), (0.3, 0.3), (float("nan"), 0.1)])
def test_fractions_that_make_no_sense(heldout, calibration):
    with pytest.raises(UserError, match=r"data\.(heldout|calibration)"):
        check_fractions(heldout, calibration)


@pytest.mark.parametrize(("characters", "expected"), [(1_000_000, 0.05), (100_000, 0.12), (1_000, 0.25)])
def test_a_short_text_spares_more(characters, expected):
    assert share(None, ["x" * characters], 12_000) == pytest.approx(expected)
    assert share(0.1, ["x" * characters], 12_000) == 0.1
