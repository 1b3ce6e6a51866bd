"""GPT-NeoX (Pythia): LayerNorm, rotary positions on part of each head, a fused projection interleaved by head.

    x = x + attention.dense(attention(query_key_value(input_layernorm(x)))) + mlp(post_attention_layernorm(x))

(or attention first, then the MLP, without `use_parallel_residual`). The rows of query_key_value are
[heads, 3, head_dim]: query, key and value of head 0, then of head 1. The config has no head size: it is
hidden_size / num_attention_heads, so width and heads can only be cut together. Checkpoints call the head `embed_out`.
"""

from __future__ import annotations

from compress.arch.base import Architecture, Config
from compress.arch.fixed_heads import check_head_dim
from compress.arch.modules import Fold, Modules
from compress.arch.shape import HIDDEN, NEURON, Axes, Axis, Shape, Widths

MODULES = Modules(
    stack="gpt_neox",
    layers="gpt_neox.layers",
    embedding="gpt_neox.embed_in",
    final_norm="gpt_neox.final_layer_norm",
    head="lm_head",
    attention=("attention.query_key_value", "attention.dense"),
    mlp=("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    residual_norms=("input_layernorm", "post_attention_layernorm"),
    folds=(
        Fold("input_layernorm", ("attention.query_key_value",)),
        Fold("post_attention_layernorm", ("mlp.dense_h_to_4h",)),
    ),
)


def read_shape(config: Config) -> Shape:
    """Sizes stated by a config."""
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        mlp=config.intermediate_size,
        vocab=config.vocab_size,
        tied=config.tie_word_embeddings,
    )


def layer_tensors(config: Config, shape: Shape) -> dict[str, Axes]:
    """Layout of every parameter of one layer (nn.Linear weights are [out, in])."""
    head = Axis("heads", unit=shape.head_dim)
    fused = Axis("heads", unit=3 * shape.head_dim)  # query, key and value of a head are neighbours
    tensors: dict[str, Axes] = {
        "input_layernorm.weight": (HIDDEN,),
        "input_layernorm.bias": (HIDDEN,),
        "attention.query_key_value.weight": (fused, HIDDEN),
        "attention.dense.weight": (HIDDEN, head),
        "post_attention_layernorm.weight": (HIDDEN,),
        "post_attention_layernorm.bias": (HIDDEN,),
        "mlp.dense_h_to_4h.weight": (NEURON, HIDDEN),
        "mlp.dense_h_to_4h.bias": (NEURON,),
        "mlp.dense_4h_to_h.weight": (HIDDEN, NEURON),
        "mlp.dense_4h_to_h.bias": (HIDDEN,),
    }
    if config.attention_bias:
        tensors |= {"attention.query_key_value.bias": (fused,), "attention.dense.bias": (HIDDEN,)}
    return tensors


def write_widths(config: Config, shape: Shape, widths: Widths) -> None:
    """State new widths in `config`, in place."""
    check_head_dim("GPT-NeoX", shape, widths)
    config.hidden_size = widths.hidden
    config.intermediate_size = widths.mlp
    config.num_attention_heads = widths.heads


GPT_NEOX = Architecture(
    family="gpt_neox",
    modules=MODULES,
    read_shape=read_shape,
    layer_tensors=layer_tensors,
    write_widths=write_widths,
    buffers=frozenset(
        {"attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq", "rotary_emb.inv_freq"}
    ),
    aliases={"embed_out.weight": "lm_head.weight"},
)
