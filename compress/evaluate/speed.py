"""How fast a model reads and writes, one sequence at a time, with the KV cache of transformers."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch

from compress.runtime.cache import cache_of, with_cache

REPEATS = 3


@torch.no_grad()
def measure_speed(model: Any, prefill_tokens: int, decode_tokens: int) -> dict[str, float]:
    """Tokens per second of prefill and decode: the median of three runs after one that is not counted.

    A model with too few positions gets a shorter prompt.

    Args:
        model: causal language model.
        prefill_tokens: length of the prompt.
        decode_tokens: tokens written after it, one by one, greedily.
    """
    limit = getattr(model.config, "max_position_embeddings", None) or prefill_tokens + decode_tokens
    decode_tokens = min(decode_tokens, limit // 2)
    prefill_tokens = min(prefill_tokens, limit - decode_tokens)
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, model.config.vocab_size, (1, prefill_tokens), generator=generator).to(model.device)
    reading, writing = [], []
    for _ in range(REPEATS + 1):
        begin = _now(model.device)
        out = model(prompt, use_cache=True, logits_to_keep=1)
        middle = _now(model.device)
        token = out.logits[:, -1:].argmax(-1)
        for _ in range(decode_tokens):
            out = model(token, **with_cache(model, cache_of(out)))
            token = out.logits[:, -1:].argmax(-1)
        end = _now(model.device)
        reading.append(prefill_tokens / (middle - begin))
        writing.append(decode_tokens / (end - middle))
    return {"prefill_tokens_per_second": median(reading[1:]), "decode_tokens_per_second": median(writing[1:])}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
