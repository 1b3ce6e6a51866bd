"""Makes a model smaller as others do it, and heals it by plain fine-tuning; imports nothing of ours.

    python prune_peer.py METHOD --model DIR --windows FILE --parameters N --out DIR [--shape DIR] [--rate R]

random           a model of the shape of --shape, initialized at random
torch_pruning    Torch-Pruning's recipe for language models (examples/LLMs/prune_llm.py): group norms, MLP and residual
                 channels cut to the same part, so that about N parameters are left; all weights trained. Attention
                 heads stay: no KV group can lose one of its query heads alone
shortgpt_lora    the layers of the least Block Influence removed (ShortGPT, arXiv 2403.03853) until at most N parameters
                 are left, then LoRA of rank 16 on all linear layers, merged

FILE holds the training tokens ("ids" int64 [n, length] and "lengths" [n]) in safetensors, in the order they are used;
all methods minimize the cross-entropy of the next token on them: AdamW, 10% warm-up, a linear fall, gradients clipped
at norm 1, bf16 autocast (fp32 where bf16 is emulated), windows in batches of --batch. DIR gets a checkpoint that
transformers loads, and `measured.json`: seconds of training, parameters, versions.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tables import emulates_bf16
from torch import Tensor

RATES = {"random": 1e-3, "torch_pruning": 1e-4, "shortgpt_lora": 5e-4}
RANK = 16
SCORED_WINDOWS = 32


def load(folder: Path) -> Any:
    """The model in fp32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def parameters(model: Any) -> int:
    """A tied head counts once."""
    return sum(p.numel() for p in model.parameters())


def random_model(given: argparse.Namespace) -> Any:
    """The same config, none of the weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(given.shape), dtype=torch.float32)


def widths_for(config: Any, asked: int) -> tuple[int, int, int]:
    """Width, MLP width and the unit of both: the same part of each, as near to `asked` parameters as units allow."""
    unit = 4 * config.num_attention_heads  # plain configs want whole heads in the width
    heads = config.head_dim * (config.num_attention_heads + config.num_key_value_heads)
    tables = 1 if config.tie_word_embeddings else 2

    def count(width: float, mlp: float) -> float:
        layer = 2 * heads * width + 3 * width * mlp + 2 * width
        return tables * config.vocab_size * width + config.num_hidden_layers * layer + width

    part = 1.0
    while count(part * config.hidden_size, part * config.intermediate_size) > asked:
        part -= 0.001
    width = unit * round(part * config.hidden_size / unit)
    choices = range(unit, config.intermediate_size + 1, unit)
    return width, min(choices, key=lambda mlp: abs(count(width, mlp) - asked)), unit


def torch_pruned(given: argparse.Namespace) -> Any:
    """One cut, as the library's example makes it."""
    import torch_pruning as tp  # type: ignore[import-not-found]

    model = load(given.model)
    config = model.config
    width, mlp_width, unit = widths_for(config, given.parameters)
    config.use_cache = False
    attentions = [m for name, m in model.named_modules() if name.endswith("self_attn")]
    heads = {m.q_proj: config.num_attention_heads for m in attentions}
    heads |= {m.k_proj: config.num_key_value_heads for m in attentions}
    heads |= {m.v_proj: config.num_key_value_heads for m in attentions}
    pruner = tp.pruner.MetaPruner(
        model,
        example_inputs=torch.tensor([[1, 2, 3, 4]]),
        output_transform=lambda output: output.logits,
        importance=tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean"),
        global_pruning=False,
        pruning_ratio=1 - width / config.hidden_size,
        pruning_ratio_dict={
            layer: 1 - mlp_width / config.intermediate_size
            for name, m in model.named_modules()
            if name.endswith("mlp")
            for layer in (m.gate_proj, m.up_proj)
        },
        ignored_layers=[model.lm_head, *(layer for m in attentions for layer in (m.q_proj, m.k_proj, m.v_proj))],
        num_heads=heads,
        prune_num_heads=False,
        prune_head_dims=False,
        round_to=unit,
    )
    for group in pruner.step(interactive=True):
        group.prune()
    first = model.model.layers[0].mlp.gate_proj
    config.hidden_size, config.intermediate_size = first.in_features, first.out_features
    config.use_cache = True
    model.tie_weights()  # embedding and head were cut alike, one after the other
    config.head_dim = attentions[0].head_dim  # no longer the quotient of width and heads
    return model


@torch.no_grad()
def without_weak_layers(given: argparse.Namespace, windows: Tensor) -> Any:
    """Least Block Influence first, all scored on the whole model."""
    model = load(given.model)
    layers = model.model.layers
    influence = torch.zeros(len(layers))
    for ids in windows[:SCORED_WINDOWS]:
        states = model(ids[None].long(), output_hidden_states=True, use_cache=False).hidden_states
        # the last entry comes after the final norm, and tells nothing of the last layer
        for index, (before, after) in enumerate(pairwise(states[:-1])):
            influence[index] += 1 - torch.cosine_similarity(before, after, -1).mean()
    influence[-1] = torch.inf
    size = sum(p.numel() for p in layers[0].parameters())
    removed = -(-(parameters(model) - given.parameters) // size)
    gone = set(influence.argsort()[:removed].tolist())
    model.model.layers = torch.nn.ModuleList([layer for i, layer in enumerate(layers) if i not in gone])
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index
    model.config.num_hidden_layers = len(model.model.layers)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [t for i, t in enumerate(model.config.layer_types) if i not in gone]
    return model


def train(model: Any, data: dict[str, Tensor], rate: float, batch: int) -> float:
    """Next-token cross-entropy, once through the windows; seconds."""
    parts = list(zip(torch.split(data["ids"], batch), torch.split(data["lengths"], batch), strict=True))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    warm = max(1, len(parts) // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (len(parts) - step) / max(1, len(parts) - warm))
    )
    begin = time.perf_counter()
    for index, (ids, lengths) in enumerate(parts):
        labels = ids.long().masked_fill(torch.arange(ids.shape[1]) >= lengths[:, None], -100)
        with torch.autocast("cpu", torch.bfloat16, enabled=not emulates_bf16()):
            loss = model(input_ids=ids.long(), labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if index % 20 == 0:
            print(f"step {index} of {len(parts)}: loss {float(loss.detach()):.3f}", flush=True)
    return time.perf_counter() - begin


def with_lora(model: Any) -> Any:
    """Adapters on all linear layers of the decoder."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))


def main() -> None:
    """Cut, heal, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=list(RATES))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--windows", type=Path, required=True)
    parser.add_argument("--parameters", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", type=Path, help="a model with the shape of the random one")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    data = load_file(given.windows)
    if given.method == "random":
        model = random_model(given)
    elif given.method == "torch_pruning":
        model = torch_pruned(given)
    else:
        model = without_weak_layers(given, data["ids"])
    model.requires_grad_(True)
    left = parameters(model)
    lora = given.method == "shortgpt_lora"
    model = with_lora(model) if lora else model
    seconds = train(model, data, given.rate or RATES[given.method], given.batch)
    model = model.merge_and_unload() if lora else model
    model.to(torch.bfloat16).save_pretrained(given.out)
    own = {"torch_pruning": ["torch-pruning"], "shortgpt_lora": ["peft"]}.get(given.method, [])
    found = {"seconds": seconds, "parameters": left, "rate": given.rate or RATES[given.method]}
    versions = "; ".join(f"{package} {version(package)}" for package in ["torch", "transformers", *own])
    (given.out / "measured.json").write_text(json.dumps(found | {"versions": versions}))


if __name__ == "__main__":
    main()
