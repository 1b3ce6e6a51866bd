"""GPT-2: LayerNorm, learned positions, one fused projection [query | key | value], linears stored as [in, out].

    x = wte(token) + wpe(position)
    x = x + attn.c_proj(attention(attn.c_attn(ln_1(x))))
    x = x + mlp.c_proj(gelu(mlp.c_fc(ln_2(x))))

The config has no head size: it is n_embd / n_head. Width and heads can therefore only be cut together.
"""

from __future__ import annotations

from compress.arch.base import Architecture, Config
from compress.arch.fixed_heads import check_head_dim
from compress.arch.modules import Fold, Modules
from compress.arch.shape import HIDDEN, NEURON, Axes, Axis, Shape, Widths
from compress.errors import UserError

MODULES = Modules(
    stack="transformer",
    layers="transformer.h",
    embedding="transformer.wte",
    positions="transformer.wpe",
    final_norm="transformer.ln_f",
    head="lm_head",
    attention=("attn.c_attn", "attn.c_proj"),
    mlp=("mlp.c_fc", "mlp.c_proj"),
    residual_norms=("ln_1", "ln_2"),
    folds=(Fold("ln_1", ("attn.c_attn",)), Fold("ln_2", ("mlp.c_fc",))),
    conv1d=True,
)


def read_shape(config: Config) -> Shape:
    """Sizes stated by a config; UserError for a GPT-2 with cross-attention (a decoder of an encoder)."""
    if config.add_cross_attention:
        raise UserError(
            "This GPT-2 config has add_cross_attention=true: it is half of an encoder-decoder model.",
            "Only stand-alone language models are supported.",
        )
    return Shape(
        layers=config.n_layer,
        hidden=config.n_embd,
        heads=config.n_head,
        kv_heads=config.n_head,
        head_dim=config.n_embd // config.n_head,
        mlp=config.n_inner if config.n_inner is not None else 4 * config.n_embd,
        vocab=config.vocab_size,
        tied=config.tie_word_embeddings,
    )


def layer_tensors(config: Config, shape: Shape) -> dict[str, Axes]:  # noqa: ARG001 (every family has this signature)
    """Layout of every parameter of one layer; weights are [in, out]."""
    head = Axis("heads", unit=shape.head_dim)
    fused = Axis("heads", blocks=3, unit=shape.head_dim)  # all queries, then all keys, then all values
    return {
        "ln_1.weight": (HIDDEN,),
        "ln_1.bias": (HIDDEN,),
        "attn.c_attn.weight": (HIDDEN, fused),
        "attn.c_attn.bias": (fused,),
        "attn.c_proj.weight": (head, HIDDEN),
        "attn.c_proj.bias": (HIDDEN,),
        "ln_2.weight": (HIDDEN,),
        "ln_2.bias": (HIDDEN,),
        "mlp.c_fc.weight": (HIDDEN, NEURON),
        "mlp.c_fc.bias": (NEURON,),
        "mlp.c_proj.weight": (NEURON, HIDDEN),
        "mlp.c_proj.bias": (HIDDEN,),
    }


def write_widths(config: Config, shape: Shape, widths: Widths) -> None:
    """State new widths in `config`, in place."""
    check_head_dim("GPT-2", shape, widths)
    if config.scale_attn_by_inverse_layer_idx and widths.layers < shape.layers:
        raise UserError(
            "This GPT-2 config has scale_attn_by_inverse_layer_idx=true: a layer's number scales its attention, so "
            "renumbered layers would compute something else.",
            "Keep all layers (layers=1.0) and cut `mlp` instead.",
        )
    if (widths.mlp, widths.hidden) != (shape.mlp, shape.hidden):
        config.n_inner = widths.mlp  # unstated it would be four times the new width
    config.n_embd = widths.hidden
    config.n_head = widths.heads


GPT2 = Architecture(
    family="gpt2",
    modules=MODULES,
    read_shape=read_shape,
    layer_tensors=layer_tensors,
    write_widths=write_widths,
    buffers=frozenset({"attn.bias", "attn.masked_bias"}),  # the causal mask, in checkpoints of transformers < 5
)
