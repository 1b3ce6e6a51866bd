"""From documents to windows of tokens: one form for training, one for perplexity.

Training windows never hold two documents of the text, so nothing leaks from one to the next without any mask but the
causal one; a short last piece is padded on the right, where causal attention does not see it. Perplexity windows
follow the usual protocol: the text joined as it stands, cut without overlap, the ragged rest dropped.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compress.data.split import cut_near
from compress.errors import UserError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("compress")

CALIBRATION_WINDOW = 256
"""Tokens per window that models are calibrated on, where nothing else is said."""

CHARS_PER_TOKEN = 4
"""Roughly, for sizing what is tokenised at once; nothing exact hangs on it."""

SECTION_WINDOWS = 16
"""A document longer than about this many windows is cut at paragraphs into sections, each treated as a document: what
is tokenised to get at one window of a book is a section, not the book."""

SHORTEST_SECTION = 1 << 14
"""Characters; however short the windows are, documents up to this stay whole."""

BATCH_CHARS = 1 << 18
MARGIN_TOKENS = 64
"""The last tokens of a prefix of a text may differ from those of the whole text: this many are not relied on."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows to train on."""

    ids: torch.Tensor
    """int32 [n, length], padded on the right."""
    lengths: torch.Tensor
    """int32 [n], real tokens of each window."""

    @property
    def tokens(self) -> int:
        """Real tokens of all windows."""
        return int(self.lengths.sum())


def readable(length: int, config: Any) -> int:
    """`length`, or the model's positions if these are fewer."""
    return min(length, getattr(config, "max_position_embeddings", None) or length)


def training_windows(
    documents: Sequence[str], tokenizer: Any, *, length: int, tokens: int, seed: int, setting: str = "length"
) -> Windows:
    """As many windows as it takes to reach `tokens` real tokens, from all over the text, in an order drawn by `seed`.

    Documents are cut into pieces of `length` tokens. Windows are pieces drawn from all documents, of long ones more
    often than of short ones, and not neighbours: the same tokens teach more where they come from more documents. Only
    documents that are drawn from are tokenised. A document's last piece is padded if it has at least
    max(8, length // 8) tokens, else dropped. A text with fewer tokens is gone through again, in another order: nothing
    is seen twice before all was seen once.

    Args:
        documents: texts; one longer than about 64 windows (and 32,768 characters) is cut at paragraphs into several.
        tokenizer: called as users call it: it adds a first token to a document if it is one that does.
        length: tokens of a window.
        tokens: real tokens wanted, all windows together.
        seed: order of documents and windows.
        setting: name of the setting behind `length`, for the message.

    Raises:
        UserError: no document has enough tokens for a window.
    """
    import torch

    logger.info("Tokenizing training text for %d tokens", tokens)
    rng = random.Random(seed)
    longest = max(SHORTEST_SECTION, SECTION_WINDOWS * CHARS_PER_TOKEN * length)
    sections = [section for document in documents for section in _sections(document, longest)]
    pieces = Pieces(sections, tokenizer, length)
    chosen: list[torch.Tensor] = []
    real = 0
    while real < tokens:
        epoch: list[torch.Tensor] = []
        for piece in pieces.once(rng):
            epoch.append(piece)
            real += len(piece)
            if real >= tokens:
                break
        if not epoch:
            most = max((len(_tokenize([s], tokenizer)[0]) for s in sorted(sections, key=len)[-3:]), default=0)
            raise UserError(
                f"The training text is too short: its longest document has {most} tokens, and a window of {length} "
                f"needs {_least(length)} at least.",
                f"Give more text or lower {setting} (now {length}).",
            )
        rng.shuffle(epoch)
        chosen += epoch

    ids = torch.full((len(chosen), length), _padding(tokenizer), dtype=torch.int32)
    for row, piece in zip(ids, chosen, strict=True):
        row[: len(piece)] = piece
    return Windows(ids, torch.tensor([len(piece) for piece in chosen], dtype=torch.int32))


def joined_windows(
    documents: Sequence[str],
    tokenizer: Any,
    *,
    length: int,
    tokens: int,
    setting: str = "length",
    text: str = "held-out",
) -> torch.Tensor:
    """Windows to measure perplexity on: the documents joined by blank lines, cut without overlap, the rest dropped.

    Args:
        documents: texts in their order.
        tokenizer: called as users call it, on the joined text (no more of it than is needed).
        length: tokens of a window.
        tokens: at most this many, rounded down to whole windows, one window at least.
        setting: name of the setting behind `length`, for the message.
        text: which text it is, for the message.

    Returns:
        int64 [n, length].

    Raises:
        UserError: the text has fewer tokens than one window.
    """
    import torch

    logger.info("Tokenizing %s text, at most %d tokens", text, tokens)
    wanted = max(1, tokens // length)
    ids = _first_tokens("\n\n".join(documents), tokenizer, wanted * length)
    whole = len(ids) // length
    if not whole:
        raise UserError(
            f"The {text} text is too short: it has {len(ids)} tokens, and one window needs {length}.",
            f"Give more text or lower {setting} (now {length}).",
        )
    return torch.tensor(ids[: whole * length], dtype=torch.int64).view(whole, length)


def last_windows(
    documents: Sequence[str], tokenizer: Any, *, length: int, tokens: int, setting: str = "length"
) -> torch.Tensor:
    """`joined_windows`, but from the end of the joined documents: what is measured on their beginning is not in them,
    as long as there is text for both."""
    text = "\n\n".join(documents)
    wanted = max(1, tokens // length)
    size = (wanted * length + MARGIN_TOKENS) * (CHARS_PER_TOKEN + 1)
    while True:
        begin = max(0, len(text) - size)
        found = joined_windows([text[_word(text, begin) :]], tokenizer, length=length, tokens=size, setting=setting)
        if len(found) >= wanted or not begin:
            return found[-wanted:]
        size *= 2


def spread_windows(documents: Sequence[str], tokenizer: Any, *, length: int, tokens: int, seed: int) -> torch.Tensor:
    """Whole windows from as many places as there are windows: what a model sees of a text, not how the text begins.

    Documents are gone through in an order drawn by `seed`; each gives one window from a place drawn in it, and another
    in every further round that is needed, until there are enough. No window holds two documents.

    Args:
        documents: texts; those shorter than a window give none.
        tokenizer: called as users call it: it adds a first token to a window if it is one that does.
        length: tokens of a window.
        tokens: rounded down to whole windows, one window at least.
        seed: order and places.

    Returns:
        int64 [n, length]; fewer than asked for, none even, if hardly any document is long enough.
    """
    import torch

    wanted = max(1, tokens // length)
    rng = random.Random(seed)
    chars = 2 * CHARS_PER_TOKEN * length
    order = [document for document in documents if len(document) >= length]
    found: list[list[int]] = []
    while order and len(found) < wanted:
        rng.shuffle(order)
        long_enough = []
        for first in range(0, len(order), wanted):
            some = order[first : first + wanted]
            begins = [rng.randrange(max(1, len(document) - chars)) for document in some]
            excerpts = [document[_word(document, at) :][:chars] for document, at in zip(some, begins, strict=True)]
            for document, ids in zip(some, _tokenize(excerpts, tokenizer), strict=True):
                if len(ids) >= length:
                    found.append(ids[:length])
                    long_enough.append(document)
            if len(found) >= wanted:
                break
        else:
            order = long_enough
    return torch.tensor(found[:wanted], dtype=torch.int64).view(-1, length)


def _word(text: str, at: int) -> int:
    """Where the first word after `at` begins; at the very start, there."""
    space = text.find(" ", at, at + 64) if at else -1
    return space + 1 if space >= 0 else at


def _least(length: int) -> int:
    return min(length, max(8, length // 8))


def _padding(tokenizer: Any) -> int:
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return int(next(i for i in candidates if i is not None))


def _tokenize(texts: list[str], tokenizer: Any) -> list[list[int]]:
    # verbose: a text longer than the model's context is no mistake here
    ids: list[list[int]] = tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
    return ids


def _sections(document: str, limit: int) -> Iterator[str]:
    start = 0
    while len(document) - start > limit:
        end = cut_near(document, start + limit, limit // 2)
        yield document[start:end]
        start = end
    yield document[start:]


class Pieces:
    """Sections in pieces of `length` tokens, each section tokenised when it is first drawn from."""

    def __init__(self, sections: Sequence[str], tokenizer: Any, length: int) -> None:
        self.sections, self.tokenizer, self.length = sections, tokenizer, length
        self._cut: dict[int, list[torch.Tensor]] = {}

    def once(self, rng: random.Random) -> Iterator[torch.Tensor]:
        """Every piece once: sections come as often as their characters promise pieces, in an order drawn by `rng`."""
        chars = CHARS_PER_TOKEN * self.length
        draws = [i for i, section in enumerate(self.sections) for _ in range(max(1, len(section) // chars))]
        rng.shuffle(draws)
        left: dict[int, list[torch.Tensor]] = {}
        for batch in _batches(draws, self.sections):
            self._tokenize(batch)
            for i in batch:
                if i not in left:
                    left[i] = rng.sample(self._cut[i], len(self._cut[i]))
                if left[i]:
                    yield left[i].pop()
        for pieces in left.values():
            yield from pieces

    def _tokenize(self, batch: list[int]) -> None:
        import torch

        missing = [i for i in dict.fromkeys(batch) if i not in self._cut]
        if missing:
            for i, ids in zip(missing, _tokenize([self.sections[i] for i in missing], self.tokenizer), strict=True):
                whole = torch.tensor(ids, dtype=torch.int32)
                pieces = (whole[start : start + self.length] for start in range(0, len(ids), self.length))
                self._cut[i] = [piece for piece in pieces if len(piece) >= _least(self.length)]


def _batches(order: Sequence[int], sections: Sequence[str]) -> Iterator[list[int]]:
    batch: list[int] = []
    size = 0
    for i in order:
        batch.append(i)
        size += len(sections[i])
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _first_tokens(text: str, tokenizer: Any, count: int) -> list[int]:
    """The first `count` tokens of `text` (all of them, if it has fewer), from as short a prefix as will do."""
    size = (count + MARGIN_TOKENS) * (CHARS_PER_TOKEN + 1)
    while True:
        whole = size >= len(text)
        ids = _tokenize([text if whole else text[: cut_near(text, size, size // 2)]], tokenizer)[0]
        if whole or len(ids) >= count + MARGIN_TOKENS:
            return ids[:count]
        size *= 2
