"""Llama, Mistral, Qwen2, Qwen3 and SmolLM3: one block, truly alike.

    x = x + o_proj(attention(q_proj, k_proj, v_proj of RMSNorm(x)))
    x = x + down_proj(act(gate_proj(y)) * up_proj(y)),   y = RMSNorm(x)

Module and tensor names are the same in all five. They differ in which projections have a bias and in Qwen3's norms on
each head (weights [head_dim], shared by the heads, so no cut touches them): data, below.

Head size: attention reads `config.head_dim` in all five (transformers 5.23), also in Qwen2 and SmolLM3, whose config
classes do not declare it; where it is missing it is hidden_size / num_attention_heads. A cut of the width or of the
heads would change that quotient, so it is then always stated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from compress.arch.base import Architecture, Config
from compress.arch.modules import Fold, Modules
from compress.arch.shape import HIDDEN, NEURON, Axes, Axis, Shape, Widths

MODULES = Modules(
    stack="model",
    layers="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    mlp=("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    residual_norms=("input_layernorm", "post_attention_layernorm"),
    folds=(
        Fold("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        Fold("self_attn.v_proj", ("self_attn.o_proj",), heads=True),
        Fold("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        Fold("mlp.up_proj", ("mlp.down_proj",)),
    ),
)


@dataclass(frozen=True)
class Variant:
    """Where families of this block differ. None for a bias: the config decides (`attention_bias`, `mlp_bias`)."""

    qkv_bias: bool | None
    out_bias: bool | None
    mlp_bias: bool | None
    head_norms: bool  # q_norm and k_norm, [head_dim]
    hidden_by_heads: bool = False  # see `Shape`


VARIANTS = {
    "llama": Variant(qkv_bias=None, out_bias=None, mlp_bias=None, head_norms=False, hidden_by_heads=True),
    "mistral": Variant(qkv_bias=False, out_bias=False, mlp_bias=False, head_norms=False),
    "qwen2": Variant(qkv_bias=True, out_bias=False, mlp_bias=False, head_norms=False),
    "qwen3": Variant(qkv_bias=None, out_bias=None, mlp_bias=False, head_norms=True),
    "smollm3": Variant(qkv_bias=None, out_bias=None, mlp_bias=None, head_norms=False),
}


def read_shape(variant: Variant, config: Config) -> Shape:
    """Sizes stated by a config."""
    heads = config.num_attention_heads
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=heads,
        kv_heads=config.num_key_value_heads or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        mlp=config.intermediate_size,
        vocab=config.vocab_size,
        tied=config.tie_word_embeddings,
        hidden_by_heads=variant.hidden_by_heads,
    )


def layer_tensors(variant: Variant, config: Config, shape: Shape) -> dict[str, Axes]:
    """Layout of every parameter of one layer (nn.Linear weights are [out, in])."""
    query = Axis("query_heads", unit=shape.head_dim)
    value = Axis("heads", unit=shape.head_dim)
    tensors: dict[str, Axes] = {
        "input_layernorm.weight": (HIDDEN,),
        "self_attn.q_proj.weight": (query, HIDDEN),
        "self_attn.k_proj.weight": (value, HIDDEN),
        "self_attn.v_proj.weight": (value, HIDDEN),
        "self_attn.o_proj.weight": (HIDDEN, query),
        "post_attention_layernorm.weight": (HIDDEN,),
        "mlp.gate_proj.weight": (NEURON, HIDDEN),
        "mlp.up_proj.weight": (NEURON, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, NEURON),
    }
    if variant.head_norms:
        tensors |= {f"self_attn.{norm}.weight": (Axis(None, unit=shape.head_dim),) for norm in ("q_norm", "k_norm")}
    biased: list[str] = []
    if config.attention_bias if variant.qkv_bias is None else variant.qkv_bias:
        biased += ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    if config.attention_bias if variant.out_bias is None else variant.out_bias:
        biased += ["self_attn.o_proj"]
    if config.mlp_bias if variant.mlp_bias is None else variant.mlp_bias:
        biased += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    return tensors | {f"{name}.bias": tensors[f"{name}.weight"][:1] for name in biased}


def write_widths(config: Config, shape: Shape, widths: Widths) -> None:
    """State new widths in `config`, in place."""
    if (widths.heads, widths.query_heads, widths.hidden) != (shape.kv_heads, shape.queries, shape.hidden):
        config.head_dim = shape.head_dim
    config.hidden_size = widths.hidden
    config.intermediate_size = widths.mlp
    config.num_attention_heads = widths.all_query_heads
    config.num_key_value_heads = widths.heads


DECODERS = {
    family: Architecture(
        family=family,
        modules=MODULES,
        read_shape=partial(read_shape, variant),
        layer_tensors=partial(layer_tensors, variant),
        write_widths=write_widths,
        buffers=frozenset({"self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq"}),
    )
    for family, variant in VARIANTS.items()
}
