"""Everything in a GGUF file but the tensors: the sizes, the positions, the tokenizer, the chat template.

llama.cpp knows a family by its name and computes what that family usually computes. A model that differs (a sliding
window, another activation, another scaling of positions) would run as something else, so it is refused.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from compress.arch import adapter_for
from compress.errors import UserError

if TYPE_CHECKING:
    from compress.checkpoint import Checkpoint

FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2"}
"""transformers' model_type -> llama.cpp's architecture."""
ACTIVATIONS = {"gpt2": ("gelu_new", "gelu_pytorch_tanh")}
ROTATIONS = ("default", "llama3", "linear")

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {QWEN2: "qwen2", QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|"): "llama-bpe"}
"""The patterns of `tokenizer.json` that cut a text into words -> what llama.cpp calls them."""


def check_family(config: Any) -> None:
    """Refuse what llama.cpp would run as something else.

    Raises:
        UserError: naming it.
    """
    family = config.model_type
    if family not in FAMILIES:
        raise UserError(f"the export gguf cannot write {family} models.", f"It writes: {', '.join(FAMILIES)}.")

    def refuse(what: str) -> None:
        raise UserError(
            f"llama.cpp would run this {family} model as another: {what}.",
            "Leave the export gguf out, or take another one in its place: export@export.gguf=hf.",
        )

    if "sliding_attention" in (getattr(config, "layer_types", None) or ()) or (
        family == "mistral" and getattr(config, "sliding_window", None)
    ):
        refuse("it knows no sliding window here")
    activation = config.activation_function if family == "gpt2" else config.hidden_act
    if activation not in ACTIVATIONS.get(family, ("silu",)):
        refuse(f"it has no activation {activation} here")
    if family == "gpt2":
        if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
            refuse("its attention is always scaled by the size of a head")
        return
    kind = rotation(config).get("rope_type", "default")
    if kind not in ROTATIONS:
        refuse(f"positions of type {kind} are not written")
    if (rotation(config).get("partial_rotary_factor") or 1) != 1:
        refuse("it turns whole heads")


def family_name(config: Any) -> str:
    """llama.cpp's architecture for a config.

    Its qwen2 takes the heads together to be as wide as the residual stream, which cuts can change; its llama does not,
    and has biases too where the file does: such a Qwen2 is written as one.
    """
    shape = adapter_for(config).shape(config)
    narrowed = config.model_type == "qwen2" and shape.heads * shape.head_dim != shape.hidden
    return "llama" if narrowed else FAMILIES[config.model_type]


def rotation(config: Any) -> dict[str, Any]:
    """The config's rope parameters."""
    return dict(getattr(config, "rope_parameters", None) or {})


def write_header(writer: Any, checkpoint: Checkpoint, file_type: int) -> None:
    """Sizes and tokenizer into a `gguf.GGUFWriter`."""
    import gguf

    config = checkpoint.config
    shape = adapter_for(config).shape(config)
    writer.add_name(checkpoint.name.rstrip("/").rpartition("/")[2])
    writer.add_block_count(shape.layers)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.mlp)
    writer.add_head_count(shape.heads)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if config.model_type == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_vocab_size(shape.vocab)
        writer.add_head_count_kv(shape.kv_heads)
        # needed once heads * size is not the width, as after pruning
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
        writer.add_rope_dimension_count(shape.head_dim)
        writer.add_rope_freq_base(rotation(config).get("rope_theta", 10000.0))
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        if rotation(config).get("rope_type") == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rotation(config)["factor"])
    write_tokenizer(writer, checkpoint, shape.vocab)


def write_tokenizer(writer: Any, checkpoint: Checkpoint, vocab: int) -> None:
    """Words, merges, special tokens and chat template.

    Raises:
        UserError: a kind of tokenizer that llama.cpp has no name for.
    """
    from gguf import TokenType

    tokenizer = checkpoint.tokenizer()
    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    words = {index: (word, TokenType.NORMAL) for word, index in raw["model"]["vocab"].items()}
    for added in raw["added_tokens"]:
        words[added["id"]] = (added["content"], TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
    # rows of the embedding that no word points to
    listed = [words.get(index, (f"[PAD{index}]", TokenType.UNUSED)) for index in range(vocab)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words_cut(tokenizer))
    writer.add_token_list([word for word, _ in listed])
    writer.add_token_types([kind for _, kind in listed])
    merges = raw["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for name in ("bos", "eos", "pad", "unk"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None and index < vocab:
            getattr(writer, f"add_{name}_token_id")(index)
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] != [None]
    writer.add_add_bos_token(begins)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def words_cut(tokenizer: Any) -> str:
    """llama.cpp's name for the way a tokenizer cuts a text into words before merging.

    Raises:
        UserError: it has none that we know.
    """
    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    steps = raw["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    bytewise = raw["model"]["type"] == "BPE" and kinds[-1:] == ["ByteLevel"] and not steps[-1]["add_prefix_space"]
    if bytewise and kinds == ["ByteLevel"]:
        return "gpt-2"
    if bytewise and kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        return "smollm"
    if bytewise and kinds == ["Split", "ByteLevel"] and steps[0]["pattern"].get("Regex") in SPLITS:
        return SPLITS[steps[0]["pattern"]["Regex"]]
    raise UserError(
        f"the export gguf does not know this tokenizer: {raw['model']['type']} with {', '.join(map(str, kinds))}.",
        "It knows those of GPT-2, SmolLM2, Llama 3 and Qwen. Leave the export gguf out.",
    )
