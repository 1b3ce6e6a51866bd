"""Text that a model writes itself: the one text that shows all it can do, and that is always at hand.

Half of the windows begin with a random word, half with the opening of a user's turn in the chat template, so that the
model writes the question and the answer. Calibrating and distilling on a narrow text alone spoils a model for all
others; its own text holds it where it was (LLM-QAT, arXiv 2305.17888, sec. 2.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

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
        advance: called with the number of tokens written.
    """
    generator = torch.Generator().manual_seed(seed)
    chat = chat_opening(tokenizer)
    plain = count - count // 2 if chat and len(chat) < length else count
    windows = [_sampled(model, _word_openings(tokenizer, plain, generator), length, generator, advance)]
    if plain < count:
        windows.append(_sampled(model, torch.tensor([chat] * (count - plain)), length, generator, advance))
    return torch.cat(windows)[torch.randperm(count, generator=generator)]


def chat_opening(tokenizer: Any) -> list[int]:
    """Tokens of the chat template up to where the user's first words stand; empty without a template."""
    if not tokenizer.chat_template:
        return []
    text = tokenizer.apply_chat_template([{"role": "user", "content": MARK}], tokenize=False)
    ids: list[int] = tokenizer(text.partition(MARK)[0], add_special_tokens=False)["input_ids"]
    return ids


def _word_openings(tokenizer: Any, count: int, generator: torch.Generator) -> Tensor:
    """[count, 2]: what separates documents, and any ordinary token."""
    separator = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    if separator is None or separator == tokenizer.unk_token_id != tokenizer.vocab.get("<|endoftext|>"):
        separator = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id or 0
    special = set(tokenizer.all_special_ids)
    ordinary = torch.tensor([i for i in range(len(tokenizer)) if i not in special])
    words = ordinary[torch.randint(len(ordinary), (count,), generator=generator)]
    return torch.stack([torch.full_like(words, separator), words], 1)


def _sampled(model: Any, openings: Tensor, length: int, generator: torch.Generator, advance: Advance) -> Tensor:
    """Continue `openings` [count, n] to `length` tokens, some windows at a time."""
    finished = []
    for opening in torch.split(openings, BATCH):
        written = opening[:, :length]
        out = model(written.to(model.device), use_cache=True, logits_to_keep=1)
        advance(written.numel())
        while written.shape[1] < length:
            token = _draw(out.logits[:, -1].float().cpu(), generator)
            written = torch.cat([written, token], 1)
            out = model(token.to(model.device), past_key_values=out.past_key_values, use_cache=True)
            advance(len(token))
        finished.append(written)
    return torch.cat(finished) if finished else openings.new_zeros(0, length)


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token [batch, 1] from logits [batch, vocab]."""
    values, ids = logits.topk(min(TOP_K, logits.shape[-1]))
    p = values.softmax(-1)
    # a token counts as long as those before it hold less than the mass wanted: the first one always does
    p = p * (p.cumsum(-1) - p < TOP_P)
    return ids.gather(1, torch.multinomial(p, 1, generator=generator))
