"""An independent reference for pruning: the *dense* model with groups silenced by hooks, not cut.

Cut neurons and heads are zeroed where the next projection reads them; dropped layers hand their input through, so every
other layer keeps its own number, mask and positions; cut residual channels are zeroed wherever something writes to the
residual stream, and norms take their statistics over the channels that remain.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from compress.arch import adapter_for
from compress.prune.plan import Plan
from compress.prune.surgery import prune_tensor


def masked(model: Any, plan: Plan) -> Any:
    """A copy of the dense model that computes what the pruned one should."""
    config, modules = model.config, adapter_for(model.config).modules
    model = copy.deepcopy(model)
    layers, width, heads = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
    channels = _mask(plan.hidden, width)
    writers = [modules.embedding, *([modules.positions] if modules.positions else [])]
    norms = [modules.final_norm]
    for layer in range(layers):
        if layer not in plan.layers:
            model.get_submodule(modules.layer(layer)).forward = lambda hidden, *_args, **_kwargs: hidden
            continue
        neurons = model.get_submodule(modules.neurons(layer))
        out = model.get_submodule(modules.head_outputs(layer))
        size = out.weight.numel() // width  # entries of all heads together
        head_dim = size // heads
        kept_entries = [head * head_dim + entry for head in plan.query_heads[layer] for entry in range(head_dim)]
        neurons.register_forward_pre_hook(_read(_mask(plan.mlp[layer], neurons.weight.numel() // width)))
        out.register_forward_pre_hook(_read(_mask(kept_entries, size)))
        writers += [modules.neurons(layer), modules.head_outputs(layer)]
        norms += modules.norms(layer)
    for path in writers:
        model.get_submodule(path).register_forward_hook(lambda _module, _inputs, output: output * channels)
    for path in norms:
        norm = model.get_submodule(path)
        norm.forward = _layer_norm(norm, channels) if isinstance(norm, nn.LayerNorm) else _rms_norm(norm, channels)
    return model


def _mask(kept: Sequence[int], size: int) -> Tensor:
    mask = torch.zeros(size)
    mask[list(kept)] = 1.0
    return mask


def _read(mask: Tensor) -> Callable[..., tuple[Tensor]]:
    return lambda _module, inputs: (inputs[0] * mask,)


def _rms_norm(norm: Any, mask: Tensor) -> Callable[[Tensor], Tensor]:
    def forward(hidden: Tensor) -> Tensor:
        mean_square = (hidden**2 * mask).sum(-1, keepdim=True) / mask.sum()
        return hidden / torch.sqrt(mean_square + norm.variance_epsilon) * norm.weight * mask

    return forward


def _layer_norm(norm: nn.LayerNorm, mask: Tensor) -> Callable[[Tensor], Tensor]:
    def forward(hidden: Tensor) -> Tensor:
        mean = (hidden * mask).sum(-1, keepdim=True) / mask.sum()
        variance = ((hidden - mean) ** 2 * mask).sum(-1, keepdim=True) / mask.sum()
        return ((hidden - mean) / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias) * mask

    return forward


def prune_folder(source: Path, target: Path, plan: Plan) -> Any:
    """Prune a folder tensor by tensor, then load it with plain transformers, every key accounted for."""
    config = AutoConfig.from_pretrained(source)
    architecture = adapter_for(config)
    pruned: dict[str, Tensor] = {}
    with safe_open(source / "model.safetensors", framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118 (not a dict)
            result = prune_tensor(name, weights.get_tensor(name), plan, architecture, config)
            if result is not None:
                assert result[0] not in pruned
                assert result[1].is_contiguous()
                pruned[result[0]] = result[1]
    architecture.pruned_config(config, plan).save_pretrained(target)
    save_file(pruned, target / "model.safetensors", metadata={"format": "pt"})
    model, info = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True, dtype=torch.float32)
    assert not any(info.values()), info
    return model.eval()
