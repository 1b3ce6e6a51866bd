"""Windows lose no token but those documented, never mix documents, and repeat by seed."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from compress.data.windows import MARGIN_TOKENS, joined_windows, last_windows, training_windows
from compress.errors import UserError
from tests.models import SENTENCES, tiny_tokenizer


class Words:
    """A tokenizer whose ids are the words of the text themselves, so that a window shows where it came from.

    It counts what it was given.
    """

    pad_token_id = 0
    eos_token_id = None

    def __init__(self, first=None):
        self.first = [] if first is None else [first]
        self.seen = 0

    def __call__(self, texts, return_attention_mask, verbose):
        self.seen += sum(map(len, texts))
        return {"input_ids": [[*self.first, *(int(word) for word in text.split())] for text in texts]}


def numbered(lengths):
    """Documents of distinct words: word k of document d is 1000 * (d + 1) + k."""
    return [" ".join(str(1000 * (d + 1) + k) for k in range(length)) for d, length in enumerate(lengths)]


def unpadded(windows):
    for row, length in zip(windows.ids.tolist(), windows.lengths.tolist(), strict=True):
        assert row[length:] == [0] * (len(row) - length)
        yield row[:length]


def expected_pieces(lengths, length):
    """Independent of the code: which runs of words must come out of one pass."""
    pieces = []
    for d, words in enumerate(lengths):
        ids = [1000 * (d + 1) + k for k in range(words)]
        full, rest = words // length, words % length
        pieces += [tuple(ids[i * length : (i + 1) * length]) for i in range(full)]
        if rest >= min(length, max(8, length // 8)):
            pieces.append(tuple(ids[full * length :]))
    return pieces


@pytest.mark.parametrize("length", [4, 8, 16, 100])
@pytest.mark.parametrize("seed", range(4))
def test_one_pass_gives_every_piece_once(length, seed):
    rng = random.Random(seed)
    lengths = [rng.randrange(200) for _ in range(40)] + [length]
    pieces = expected_pieces(lengths, length)
    windows = training_windows(numbered(lengths), Words(), length=length, tokens=sum(map(len, pieces)), seed=seed)
    assert Counter(map(tuple, unpadded(windows))) == Counter(pieces)
    assert windows.tokens == sum(map(len, pieces))
    assert windows.ids.dtype == windows.lengths.dtype == torch.int32
    assert windows.ids.shape == (len(pieces), length)


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 500])
def test_no_more_windows_than_it_takes(tokens):
    windows = training_windows(numbered([50] * 30), Words(), length=16, tokens=tokens, seed=0)
    assert tokens <= windows.tokens < tokens + 16
    assert all(len({i // 1000 for i in piece}) == 1 for piece in unpadded(windows))


def test_a_short_text_is_gone_through_again_in_another_order_and_evenly():
    pieces = expected_pieces([40, 25, 60], 16)
    once = sum(map(len, pieces))
    windows = training_windows(numbered([40, 25, 60]), Words(), length=16, tokens=3 * once, seed=5)
    found = list(map(tuple, unpadded(windows)))
    epochs = [found[i * len(pieces) : (i + 1) * len(pieces)] for i in range(3)]
    assert all(Counter(epoch) == Counter(pieces) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_text_gone_through_again_is_not_tokenised_again():
    tokenizer, documents = Words(), numbered([40, 25, 60])
    training_windows(documents, tokenizer, length=16, tokens=1000, seed=5)
    assert tokenizer.seen == sum(map(len, documents))


def test_the_seed_decides_and_nothing_else():
    documents = numbered([300] * 20)
    same = [training_windows(documents, Words(), length=32, tokens=2000, seed=1) for _ in range(2)]
    torch.manual_seed(0)
    random.seed(0)
    same.append(training_windows(documents, Words(), length=32, tokens=2000, seed=1))
    assert all(torch.equal(each.ids, same[0].ids) and torch.equal(each.lengths, same[0].lengths) for each in same)
    other = training_windows(documents, Words(), length=32, tokens=2000, seed=2)
    assert set(map(tuple, unpadded(other))) != set(map(tuple, unpadded(same[0])))


def test_a_budget_samples_all_of_a_long_document():
    document = "\n\n".join(" ".join(str(50 * p + k) for k in range(1, 50)) for p in range(8000))
    windows = training_windows([document], Words(), length=16, tokens=20_000, seed=0)
    starts = [piece[0] for piece in unpadded(windows)]
    assert max(starts) > 300_000
    assert min(starts) < 100_000
    everything = training_windows([document], Words(), length=16, tokens=385_000, seed=0)
    assert all(piece == sorted(piece) for piece in unpadded(everything))
    # sections are cut between paragraphs: only ragged ends of sections may go, and there are few
    assert len({i for piece in unpadded(everything) for i in piece}) > 0.97 * 49 * 8000


def test_a_budget_comes_from_all_over_the_text_and_from_long_documents_more_often():
    lengths = [160] * 100 + [16] * 100
    windows = training_windows(numbered(lengths), Words(), length=16, tokens=220 * 16, seed=3)
    drawn = Counter(piece[0] // 1000 - 1 for piece in unpadded(windows))
    # 220 of 1,100 pieces, 200 of them from 100 documents: drawn alone, a document of ten is missed one time in ten
    assert sum(drawn[d] > 0 for d in range(100)) > 75
    assert max(drawn.values()) < 8
    assert 5 < sum(drawn[d] for d in range(100, 200)) < 40


def test_only_as_much_is_tokenised_as_is_needed():
    documents = numbered([900] * 900)
    tokenizer = Words()
    training_windows(documents, tokenizer, length=16, tokens=1000, seed=0)
    assert tokenizer.seen < 0.2 * sum(map(len, documents))
    tokenizer = Words()
    joined_windows(documents, tokenizer, length=16, tokens=1000)
    assert tokenizer.seen < 0.02 * sum(map(len, documents))


def test_a_first_token_is_there_exactly_where_the_tokenizer_puts_it():
    windows = training_windows(numbered([40] * 3), Words(first=7), length=16, tokens=123, seed=0)
    pieces = list(unpadded(windows))
    assert sum(piece.count(7) for piece in pieces) == 3
    assert all(piece[0] == 7 for piece in pieces if 7 in piece)
    joined = joined_windows(numbered([40] * 3), Words(first=7), length=11, tokens=10_000)
    assert joined.flatten().tolist().count(7) == 1
    assert joined[0, 0] == 7


@pytest.mark.parametrize("tokens", [10, 64, 100, 640, 10**9])
def test_joined_windows_are_the_text_as_it_stands(tokens):
    documents = [f"{sentence}\n{sentence}" for sentence in SENTENCES * 40]
    tokenizer = tiny_tokenizer()
    whole = tokenizer("\n\n".join(documents))["input_ids"]
    windows = joined_windows(documents, tokenizer, length=32, tokens=tokens)
    count = min(max(1, tokens // 32), len(whole) // 32)
    assert windows.shape == (count, 32)
    assert windows.dtype == torch.int64
    assert windows.flatten().tolist() == whole[: 32 * count]


def test_joined_windows_of_a_text_with_long_tokens_read_on_until_there_are_enough():
    documents = ["1" + "0" * 300 + " " + "7" * 300] * 400
    windows = joined_windows(documents, Words2(), length=10, tokens=200)
    assert windows.shape == (20, 10)


class Words2(Words):
    """Words too large for an int64 become their length."""

    def __call__(self, texts, return_attention_mask, verbose):
        return {"input_ids": [[len(word) for word in text.split()] for text in texts]}


def test_the_margin_covers_what_a_cut_changes():
    """Cutting a text anywhere changes only its last few tokens, with a tokenizer of the usual kind."""
    tokenizer = tiny_tokenizer()
    text = " ".join(SENTENCES)
    whole = tokenizer(text)["input_ids"]
    for end in range(200, 260):
        ids = tokenizer(text[:end])["input_ids"]
        assert ids[:-MARGIN_TOKENS] == whole[: len(ids)][:-MARGIN_TOKENS]


@pytest.mark.parametrize("documents", [[], [""], ["1 2 3", "1 2 3 4 5"]])
def test_a_text_too_short_is_refused_with_the_numbers(documents):
    longest = max((len(d.split()) for d in documents), default=0)
    with pytest.raises(UserError, match=rf"(?s)has {longest} tokens, and a window of 64 needs 8 .*lower train.length"):
        training_windows(documents, Words(), length=64, tokens=100, seed=0, setting="train.length")
    total = sum(len(d.split()) for d in documents)
    with pytest.raises(UserError, match=rf"(?s)has {total} tokens, and one window needs 64.*lower evaluate.length"):
        joined_windows(documents, Words(), length=64, tokens=100, setting="evaluate.length")


@pytest.mark.parametrize("lengths", [[4000], [40] * 100])
def test_windows_from_the_end_leave_the_beginning_alone(lengths):
    """Also of a single document: what validates is not what the report measures."""
    documents = numbered(lengths)
    words = " ".join(documents).split()
    last = last_windows(documents, Words(), length=64, tokens=640)
    assert last.shape == (10, 64)
    # consecutive words of the text's end, but for the ragged rest
    found = last.flatten().tolist()
    begin = words.index(str(found[0]))
    assert found == list(map(int, words[begin : begin + 640])) and begin + 640 > len(words) - 64
    assert len(last_windows(documents, Words(), length=64, tokens=10**6)) == 4000 // 64
