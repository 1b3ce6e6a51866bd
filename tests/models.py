"""Tiny random models of every family, one factory for all tests.

`tiny("qwen2")` gives (config, model); `save("qwen2", folder)` a folder with a small real tokenizer. Weights are
large enough that attention is far from uniform, and norms and biases are far from their initial ones and zeros,
so that forgetting one shows in the logits.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

transformers_logging.set_verbosity_error()

VOCAB = 320  # 256 bytes, 3 special tokens, 61 merges
BOS, EOS, PAD = "<s>", "</s>", "<pad>"  # ids 0, 1, 2
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<s>' + message['role'] + '\n' + message['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
SENTENCES = (
    "The state of the union is strong, and the people of the nation know it.",
    "A small model that was cut from a large one must be taught again by the large one.",
    "What is the capital of France? The capital of France is Paris.",
    "In the morning the sun rises over the river, and the boats go out to the sea.",
    "We measure what it cost, and we write the number down beside the thing itself.",
)

_COMMON = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_MULTI_HEAD = _COMMON | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
_GROUPED = _MULTI_HEAD | {"num_key_value_heads": 2, "head_dim": 16}
_WINDOWED = {"sliding_window": 5, "use_sliding_window": True}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "mistral": _GROUPED | {"sliding_window": 5},
    "qwen2": _GROUPED | _WINDOWED | {"max_window_layers": 2},
    "qwen3": _GROUPED | _WINDOWED | {"max_window_layers": 1},
    # the second layer has a window and no rotary positions, the fourth neither
    "smollm3": _GROUPED
    | _WINDOWED
    | {"no_rope_layers": [1, 0, 1, 0], "layer_types": ["full_attention", "sliding_attention", *["full_attention"] * 2]},
    "gpt2": _COMMON | {"n_embd": 64, "n_inner": 128, "n_layer": 4, "n_head": 4, "n_positions": 128},
    "gpt_neox": _MULTI_HEAD | {"rotary_pct": 0.5},
}

# what else a family's config can say that changes its tensors: name -> (family, overrides)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {family: (family, {}) for family in FAMILIES} | {
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-head_dim": ("llama", {"head_dim": 24}),
    "llama-no_gqa": ("llama", {"num_key_value_heads": 4}),
    "qwen2-implicit_head_dim": ("qwen2", {"head_dim": None, "tie_word_embeddings": True}),
    "qwen3-biases": ("qwen3", {"attention_bias": True, "head_dim": 24, "tie_word_embeddings": True}),
    "smollm3-untied": ("smollm3", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "smollm3-intervals": ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 2, "layer_types": None}),
    "gpt2-untied": ("gpt2", {"tie_word_embeddings": False, "n_inner": None}),
    "gpt_neox-tied": ("gpt_neox", {"tie_word_embeddings": True}),
    "gpt_neox-serial": ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False}),
}


def tiny(name: str, *, seed: int = 0, **overrides: Any) -> tuple[Any, Any]:
    """(config, model in eval mode, fp32) of a family or a variant of one.

    Args:
        name: a key of FAMILIES or VARIANTS.
        seed: of the weights.
        overrides: config fields; None leaves a field to the family's config class.
    """
    family, variant = VARIANTS[name]
    fields = {key: value for key, value in (FAMILIES[family] | variant | overrides).items() if value is not None}
    config = AutoConfig.for_model(family, **fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(0.3 * noise + (0.0 if key.endswith("bias") else 1.0))
            else:
                parameter.copy_(0.15 * noise)
    return config, model


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on SENTENCES: every text has tokens, and training is deterministic."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=BOS, eos_token=EOS, pad_token=PAD)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save(name: str, folder: Path, tokenizer: bool = True, **overrides: Any) -> tuple[Any, Any]:
    """Write `tiny(name, **overrides)` as a Hugging Face folder; returns (config, model)."""
    config, model = tiny(name, **overrides)
    model.save_pretrained(folder)
    if tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return config, model
