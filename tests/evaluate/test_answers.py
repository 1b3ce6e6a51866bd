"""Answers written together are those each prompt gets alone."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from compress.evaluate.answers import _continued, answer, repetition
from tests.models import FAMILIES, SENTENCES, VOCAB, tiny, tiny_tokenizer

PROMPTS = ["", SENTENCES[2], SENTENCES[0] * 2, "A", SENTENCES[0] * 40]
"""Nothing to answer, three that leave room for eight tokens, and one longer than the model can read."""


def alone(model, tokenizer, prompt: str, tokens: int) -> str:
    """Token by token, no cache, no padding."""
    if tokenizer.chat_template:
        message = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
    else:
        ids = tokenizer(prompt)["input_ids"]
    if not 0 < len(ids) < model.config.max_position_embeddings:
        return ""
    written: list[int] = []
    while len(written) < min(tokens, model.config.max_position_embeddings - len(ids)):
        with torch.no_grad():
            written.append(int(model(torch.tensor([ids + written])).logits[0, -1].argmax()))
        if written[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(written, skip_special_tokens=True).strip()


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_together_as_alone(family: str, template: bool) -> None:
    (_, model), tokenizer = tiny(family), copy.copy(tiny_tokenizer())  # the tokenizer is every test's
    if not template:
        tokenizer.chat_template = None
    found = answer(model, tokenizer, PROMPTS, 8)
    assert found == [alone(model, tokenizer, prompt, 8) for prompt in PROMPTS]
    assert any(found)


def test_a_prompt_that_leaves_little_room_shortens_no_other() -> None:
    (_, model), tokenizer = tiny("llama"), copy.copy(tiny_tokenizer())
    tokenizer.chat_template = None
    words = SENTENCES[4] * 20
    long = tokenizer.decode(tokenizer(words)["input_ids"][:120])
    prompts = [long, SENTENCES[0]]
    room = model.config.max_position_embeddings - len(tokenizer(long)["input_ids"])
    assert 0 < room < 32
    assert answer(model, tokenizer, prompts, 32) == [alone(model, tokenizer, prompt, 32) for prompt in prompts]


def test_a_prompt_without_a_word_is_not_answered() -> None:
    """Even where no answer would fit whole."""
    (_, model), tokenizer = tiny("llama"), copy.copy(tiny_tokenizer())
    tokenizer.chat_template = None
    assert answer(model, tokenizer, ["", SENTENCES[0]], 200)[0] == ""


@pytest.mark.parametrize("several", [False, True])
def test_what_ends_early_is_cut_there(several: bool) -> None:
    """The others go on; a model may name its ends itself, and the tokenizer need not know them."""
    (_, model), tokenizer = tiny("llama"), copy.copy(tiny_tokenizer())
    prompts = [tokenizer(sentence)["input_ids"] for sentence in SENTENCES[:3]]
    rows = _continued(model, tokenizer, prompts, 8)
    end = next(token for token in rows[0][2:6] if token not in rows[0][:2] + rows[1])
    never = next(token for token in range(VOCAB) if all(token not in row for row in rows))
    tokenizer.eos_token = None
    model.generation_config.eos_token_id = [never, end] if several else end
    cut = [list(itertools.takewhile(lambda token: token != end, row)) for row in rows]
    assert len(cut[0]) < len(cut[1]) == 8
    assert _continued(model, tokenizer, prompts, 8) == cut


def test_repetition() -> None:
    assert repetition("one two three four five six seven") == 0
    assert repetition("to be or not " * 20) > 0.9
    assert repetition("") == repetition("two words") == 0
