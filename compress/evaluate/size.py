"""How many parameters a config has, and what they take on disk."""

from __future__ import annotations

from typing import Any

from compress.arch import adapter_for
from compress.checkpoint import Checkpoint


def count_parameters(config: Any) -> tuple[int, int]:
    """(all parameters with tied ones counted once, parameters that are not embedding or head), of the dense model."""
    import torch
    from transformers import AutoModelForCausalLM

    config = type(config).from_dict({k: v for k, v in config.to_dict().items() if k != "quantization_config"})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(p.numel() for p in model.parameters()), adapter_for(config).non_embedding_parameters(config)


def measure_size(checkpoint: Checkpoint) -> dict[str, int]:
    """`params`, `params_non_embedding`, `bytes` on disk, and `bytes_bf16` of the same shape unquantized."""
    total, non_embedding = count_parameters(checkpoint.config)
    return {
        "params": total,
        "params_non_embedding": non_embedding,
        "bytes": checkpoint.bytes(),
        "bytes_bf16": 2 * total,
    }
