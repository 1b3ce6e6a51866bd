"""What a model says: greedy answers to prompts, and how much they repeat themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compress.errors import UserError
from compress.evaluate.settings import AT_ONCE


@torch.no_grad()
def answer(model: Any, tokenizer: Any, prompts: list[str], tokens: int) -> list[str]:
    """Greedy answers, through the chat template where there is one, `AT_ONCE` written together.

    Args:
        model: causal language model.
        tokenizer: its tokenizer.
        prompts: questions; one that says nothing, or is longer than the model can read, has "" for an answer.
        tokens: the longest answer.

    Raises:
        UserError: the chat template refuses a question.
    """
    asked = [_asked(tokenizer, prompt) for prompt in prompts]
    limit = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    answers = [""] * len(prompts)
    readable = [i for i, ids in enumerate(asked) if 0 < len(ids) < limit]
    together = [i for i in readable if len(asked[i]) + tokens <= limit]
    # a prompt that leaves little room would shorten the others' answers too
    groups = [[i] for i in readable if i not in together]
    groups += [together[i : i + AT_ONCE] for i in range(0, len(together), AT_ONCE)]
    for group in groups:
        room = min(tokens, limit - max(len(asked[i]) for i in group))
        for i, written in zip(group, _continued(model, tokenizer, [asked[i] for i in group], room), strict=True):
            answers[i] = tokenizer.decode(written, skip_special_tokens=True).strip()
    return answers


def _continued(model: Any, tokenizer: Any, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """What follows prompts of any lengths, padded on the left: at most `tokens` each."""
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else model.generation_config.eos_token_id
    ends = end if isinstance(end, list) else [] if end is None else [end]
    widest = max(map(len, prompts))
    ids = torch.tensor([[0] * (widest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (widest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out: Tensor = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=ends[0] if ends else None,
    )
    rows = out[:, widest:].tolist()
    # after its end a row is padded until the longest has ended
    return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in rows]


def _asked(tokenizer: Any, prompt: str) -> list[int]:
    """The prompt's tokens, in the chat template where there is one.

    Raises:
        UserError: the template cannot be filled in.
    """
    if not tokenizer.chat_template:
        plain: list[int] = tokenizer(prompt)["input_ids"]
        return plain
    from jinja2 import TemplateError

    message = [{"role": "user", "content": prompt}]
    try:
        filled = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
    except TemplateError as error:
        raise UserError(
            f"the model's chat template refuses a question without a system message: {error}.",
            "Mend chat_template.jinja, or ask nothing: evaluate.prompts=[].",
        ) from error
    ids: list[int] = filled["input_ids"]
    return ids


def repetition(text: str, n: int = 4) -> float:
    """Fraction of the text's word n-grams that it has already said: 0 for no repetition, near 1 for a loop.

    1 - distinct / all n-grams (the rep-n of Welleck et al., arXiv 1908.04319, sec. 5).
    """
    words = text.lower().split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
