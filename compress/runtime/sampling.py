"""Text that a model writes itself: the one text that shows all it can do, and that is always at hand.

Half of the windows begin with a random word, half with the opening of a user's turn in the chat template, so that the
model writes the question and the answer. Calibrating and distilling on a narrow text alone spoils a model for all
others; its own text holds it where it was (LLM-QAT, arXiv 2305.17888, sec. 2.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.runtime.cache import cache_of, with_cache

if TYPE_CHECKING:
    from compress.stage import Advance

BATCH = 64
TOP_K = 256
TOP_P = 0.95
MARK = "USER TEXT"


@torch.no_grad()
def sample_windows(model: Any, tokenizer: Any, count: int, length: int, seed: int, advance: Advance) -> Tensor:
    """Windows [count, length] of tokens sampled at temperature 1 from the most likely 95% (at most 256 tokens).

    Args:
        model: causal language model.
        tokenizer: its tokenizer.
        count: windows.
        length: tokens per window.
        seed: the same seed gives the same text on the same machine.
        advance: called with the number of tokens written since.
    """
    generator = torch.Generator().manual_seed(seed)
    chat = chat_opening(tokenizer)
    plain = count - count // 2 if 2 < len(chat) < length else count
    words = model.get_input_embeddings().num_embeddings
    openings = [*_word_openings(tokenizer, words, plain, generator), *[chat] * (count - plain)]
    # mixed, so that windows of both kinds are written together
    order = torch.randperm(count, generator=generator).tolist()
    windows = [
        _sampled(model, [openings[i] for i in order[first : first + BATCH]], length, generator, advance)
        for first in range(0, count, BATCH)
    ]
    return torch.cat(windows)


def chat_opening(tokenizer: Any) -> list[int]:
    """Tokens of the chat template up to where the user's first words stand; empty without a template."""
    if not tokenizer.chat_template:
        return []
    text = tokenizer.apply_chat_template([{"role": "user", "content": MARK}], tokenize=False)
    ids: list[int] = tokenizer(text.partition(MARK)[0], add_special_tokens=False)["input_ids"]
    return ids


def _word_openings(tokenizer: Any, words: int, count: int, generator: torch.Generator) -> list[list[int]]:
    """What separates documents, and any ordinary one of the `words` tokens the model knows."""
    # a tokenizer class may add tokens that this model has never had
    candidates = (tokenizer.vocab.get("<|endoftext|>"), tokenizer.bos_token_id, tokenizer.eos_token_id, 0)
    separator = next(token for token in candidates if token is not None and token < words)
    special = set(tokenizer.all_special_ids)
    ordinary = [i for i in range(min(len(tokenizer), words)) if i not in special]
    drawn = torch.randint(len(ordinary), (count,), generator=generator).tolist()
    return [[separator, ordinary[i]] for i in drawn]


def _sampled(
    model: Any, openings: list[list[int]], length: int, generator: torch.Generator, advance: Advance
) -> Tensor:
    """Continue openings of any lengths together, padded on the left, until each window has `length` tokens."""
    widest = max(map(len, openings))
    pads = [widest - len(opening) for opening in openings]
    written = torch.tensor([[0] * pad + opening for pad, opening in zip(pads, openings, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * (widest - pad) for pad in pads])
    last_position = (getattr(model.config, "max_position_embeddings", None) or 1 << 30) - 1
    token, past = written, None
    for _ in range(length - widest + max(pads)):
        # a window that is already long enough goes on beside the others; what it writes is cut off below
        positions = (mask.cumsum(1) - 1).clamp(0, last_position)[:, -token.shape[1] :]
        out = model(
            token.to(model.device),
            attention_mask=mask.to(model.device),
            position_ids=positions.to(model.device),
            **with_cache(model, past),
            logits_to_keep=1,
        )
        past = cache_of(out)
        token = _draw(out.logits[:, -1].float().cpu(), generator)
        written = torch.cat([written, token], 1)
        mask = torch.cat([mask, torch.ones_like(token)], 1)
        advance(len(openings) * length / (length - widest + max(pads)))
    return torch.stack([row[pad : pad + length] for row, pad in zip(written, pads, strict=True)])


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token [batch, 1] from logits [batch, vocab]."""
    values, ids = logits.topk(min(TOP_K, logits.shape[-1]))
    p = values.softmax(-1)
    # a token counts as long as those before it hold less than the mass wanted: the first one always does
    p = p * (p.cumsum(-1) - p < TOP_P)
    return ids.gather(1, torch.multinomial(p, 1, generator=generator))
