"""What a model says: greedy answers to prompts, and how much they repeat themselves."""

from __future__ import annotations

from typing import Any

import torch

from compress.errors import UserError


@torch.no_grad()
def answer(model: Any, tokenizer: Any, prompts: list[str], tokens: int) -> list[str]:
    """Greedy answers, through the chat template where there is one; one prompt at a time, so that no padding enters."""
    answers = []
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else model.generation_config.eos_token_id
    for prompt in prompts:
        ids = _asked(tokenizer, prompt)
        ids = {"input_ids": ids["input_ids"].to(model.device), "attention_mask": ids["attention_mask"].to(model.device)}
        limit = getattr(model.config, "max_position_embeddings", None) or 1 << 30
        room = min(tokens, limit - ids["input_ids"].shape[1])
        if room < 1:
            answers.append("")  # the prompt alone is longer than the model can read
            continue
        out = model.generate(**ids, max_new_tokens=room, do_sample=False, eos_token_id=end, pad_token_id=end)
        written = out[0, ids["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(written, skip_special_tokens=True).strip())
    return answers


def _asked(tokenizer: Any, prompt: str) -> Any:
    """The prompt's tokens, in the chat template where there is one.

    Raises:
        UserError: the template cannot be filled in.
    """
    if not tokenizer.chat_template:
        return tokenizer(prompt, return_tensors="pt")
    from jinja2 import TemplateError

    message = [{"role": "user", "content": prompt}]
    try:
        return tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    except TemplateError as error:
        raise UserError(
            f"the model's chat template refuses a question without a system message: {error}.",
            "Mend chat_template.jinja, or ask nothing: evaluate.prompts=[].",
        ) from error


def repetition(text: str, n: int = 4) -> float:
    """Fraction of the text's word n-grams that it has already said: 0 for no repetition, near 1 for a loop.

    1 - distinct / all n-grams (the rep-n of Welleck et al., arXiv 1908.04319, sec. 5).
    """
    words = text.lower().split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
