"""Peak memory from the textbook formulas, term by term.

Training, per trained parameter (ZeRO, arXiv 1910.02054, sec. 3.1; with fp32 master weights and AdamW):

    weight 4 + gradient 4 + first moment 4 + second moment 4 = 16 bytes, and 2 for the copy autocast multiplies with

LoRA (arXiv 2106.09685, sec. 4.2): the same for the adapters alone, beside a frozen base. QLoRA (arXiv 2305.14314):
the base in 4 bits.

Activations kept for the backward pass, per token and layer, after Korthikanti et al. (arXiv 2205.05198, eq. 2), whose
34 h counts GPT's block in 16 bits with dropout; here term by term for what autograd keeps of a decoder layer without
dropout and with fused attention (no [length, length] matrix), h the width, q and k the widths of queries and keys, m
the neurons:

    two norms       2 x 4 h                 input in fp32; beside adapters in 16 bits
    linears         2 x (2 h + q + m)       inputs, those of one fused RMSNorm shared; each its own after a LayerNorm,
                                            which gives fp32, and where adapters cast it
    attention       2 (q + 2 k)             queries, keys, values
    MLP             2 x 3 m                 gate, its activation, the other factor; other families: see `Block`
    adapters        2 x (q + rank) ...      attention's result a second time, and A's result of every linear

(sums the tests compare with what autograd really keeps).

With checkpointing only the layer's input stays, 4 h, and one layer is computed again at a time (Chen et al., arXiv
1604.06174). FSDP over N GPUs divides the student's weights, gradients and state by N (ZeRO stage 3).

Everything is in bytes. `host` is what this process holds itself (anonymous memory, what `peak_rss_bytes` measures);
`mapped` comes on top: pages of weight files, which the system can drop and read again. On a GPU nothing is mapped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from compress.arch import adapter_for
from compress.estimate.form import Form
from compress.estimate.layouts import payload_bytes

MB = 1_000_000

LIBRARIES = 400 * MB
"""torch, transformers and lightning once imported, and the Python that runs them: anonymous memory, Linux, x86-64."""
AFTER_TRAINING = 70 * MB
"""What the first training of a process leaves: autograd's threads, Lightning's loops, oneDNN's compiled products."""
ADAPTER_LIBRARIES = 26 * MB
"""peft and bitsandbytes."""
PER_WORD = 1040
"""A tokenizer in memory: bytes per token of its vocabulary (text, merges, two hash tables)."""
TEXT = 25 * MB
"""Both texts as Python holds them, and their tokens."""

HOLES = 0.5
"""Of the activations beside adapters: what glibc holds of the many results that were freed between those that stay
(measured; `malloc_trim` gives it back)."""

MASTER, GRADIENT, MOMENTS, AUTOCAST = 4, 4, 8, 2
WORKSPACE = 32 << 20
"""Logits of both models in the fused loss, a chunk at a time (`compress_kernels.chunks`)."""
CAST_SLICE = (1 << 20) * 6
"""A slice of a head in both types."""


@dataclass(frozen=True)
class Peak:
    """Bytes by what they are for, at the moment when there are most."""

    terms: Mapping[str, int] = field(default_factory=dict)
    mapped: int = 0
    gpu: int = 0
    """The same on a GPU: the model's terms and what would be mapped, without the libraries' host memory."""

    @property
    def host(self) -> int:
        """Anonymous memory of the process."""
        return sum(self.terms.values())


@dataclass(frozen=True)
class Batch:
    """What goes through the model at a time."""

    windows: int
    length: int
    bf16: bool
    """Computed in bf16 (autocast) or in fp32."""
    checkpointing: bool = False
    """Of every layer its input alone is kept, and one layer's activations at a time."""
    moments: int = 8
    """Bytes of the optimizer's state for a trained parameter."""

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.windows * self.length

    @property
    def itemsize(self) -> int:
        """Bytes of a number in the compute type."""
        return 2 if self.bf16 else 4


def resident(vocab: int, references: int, reads_text: bool) -> dict[str, int]:
    """What a stage finds there or brings along: libraries, texts, the original's states to compare with, a tokenizer
    for measuring and, if it reads text, one of its own."""
    return {
        "libraries": LIBRARIES,
        "tokenizers": (2 if reads_text else 1) * PER_WORD * vocab,
        "texts": TEXT,
        "reference states": references,
    }


def loaded(form: Form) -> dict[str, int]:
    """Anonymous memory of a model as loaded: dense weights in their own type are mapped, quantized ones are copied."""
    quantized = [
        t for t in form.stored if t.type in ("U8", "I8", "I32") or t.name.endswith(("absmax", "SCB", "quant_map"))
    ]
    terms = {"quantized weights": payload_bytes(quantized)} if quantized else {}
    return terms | ({"adapters": 4 * form.adapters} if form.adapters else {})


@dataclass(frozen=True)
class Block:
    """What a family's layer keeps besides the inputs of its linears."""

    streams: int
    """Residual streams that norms read: one where attention and MLP read the same."""
    layer_norm: bool
    """LayerNorm, else RMSNorm (`compress.train.norms`); both keep their input alone."""
    query_copies: int
    key_copies: int
    mlp_copies: int
    """Gated: gate, its activation, the other factor. GELU by tanh in plain operations: 4. One fused: 1."""


def block_of(form: Form) -> Block:
    """By what the family's tensors and config say."""
    names = {p.name.rpartition(".layers.")[2].rpartition(".h.")[2].partition(".")[2] for p in form.layer}
    modules = adapter_for(form.config).modules
    layer_norm = f"{modules.residual_norms[0]}.bias" in names
    fused = len(modules.attention) < 4
    parallel = fused and not modules.conv1d and getattr(form.config, "use_parallel_residual", True)
    act = getattr(form.config, "hidden_act", None) or getattr(form.config, "activation_function", None) or "gelu_new"
    plain = 4 if act in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh") and modules.conv1d else 1
    # a fused projection is kept whole, and where halves of heads are rotated the rotated ones beside it
    copies = (3 if modules.conv1d else 6, 0) if fused else (1, 2)
    return Block(1 if parallel else 2, layer_norm, *copies, 3 if len(modules.mlp) > 2 else plain)


def layer_activations(form: Form, batch: Batch) -> int:
    """Bytes that autograd keeps of one layer for one micro-batch."""
    block = block_of(form)
    h, m, q = form.widths.hidden, form.widths.mlp, form.queries
    size = batch.itemsize
    # where no cast stands between, the linears that read the same input keep the same tensor
    shared = not batch.bf16 or not (block.layer_norm or form.rank)
    inputs = 2 * h + q + m if shared else sum(width for _, width in form.linears_of_a_layer())
    norms = (size if form.rank and not block.layer_norm else 4) * h * block.streams
    attention = size * (block.query_copies * q + block.key_copies * form.keys) + 4 * form.heads
    # peft casts a linear's input to the adapters' type: attention's result is no longer the tensor o_proj keeps
    adapters = size * (q + form.rank * len(list(form.linears_of_a_layer()))) if form.rank else 0
    return batch.tokens * (norms + size * (inputs + block.mlp_copies * m) + attention + adapters)


def training(form: Form, batch: Batch, trained: int, master: int) -> dict[str, int]:
    """Terms of one training, without what is resident.

    Args:
        form: the student.
        batch: a micro-batch.
        trained: parameters that train.
        master: bytes of the student's weights as they lie in memory.
    """
    vocab, h = form.shape.vocab, form.widths.hidden
    activations = form.widths.layers * layer_activations(form, batch)
    if batch.checkpointing:
        activations = layer_activations(form, batch) + form.widths.layers * 4 * batch.tokens * h
    return {
        "weights": master,
        "gradients": GRADIENT * trained,
        "optimizer state": batch.moments * trained,
        "autocast copies": AUTOCAST * trained if batch.bf16 else 0,
        "activations": activations,
        "freed between them": round(HOLES * activations) if form.rank else 0,
        "loss": min(WORKSPACE, 2 * batch.itemsize * batch.tokens * vocab) + CAST_SLICE + 3 * 4 * batch.tokens * h,
    }


def kv_cache(form: Form, windows: int, length: int, itemsize: int = 2) -> int:
    """Keys and values of every layer: 2 x layers x k numbers a token."""
    return 2 * itemsize * form.widths.layers * form.keys * windows * length


def writing_own_text(form: Form, windows: int, length: int, itemsize: int) -> dict[str, int]:
    """Terms while the original writes: cache, one layer's keys and values repeated for all query heads, logits."""
    repeated = 2 * itemsize * windows * length * form.shape.heads * form.shape.head_dim
    cache = kv_cache(form, windows, length, itemsize)
    return {
        "KV cache": cache,
        # growing a tensor leaves its old places behind: of every layer one
        "KV cache, growing": repeated + 2 * cache // max(1, form.widths.layers),
        "logits": (itemsize + 4 + 4) * windows * form.shape.vocab,
    }
