"""Floating-point operations and bytes moved, and what is left of a stage's memory: the small formulas under `stages`.

forward     2 x weights + 4 x length x q / 2 (causal attention) per token and layer      Kaplan et al., arXiv
backward    twice the forward where weights train, once where only inputs' gradients go     2001.08361, sec. 2.1
head        2 x vocabulary x width per token and product
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from compress.data.windows import CALIBRATION_WINDOW
from compress.estimate.form import Form
from compress.estimate.memory import MOMENTS, Batch, layer_activations, loaded

GRAMS_AT_A_TIME = 1 << 30
"""`compress.calibrate.GRAM_BYTES`."""


@dataclass(frozen=True)
class Phase:
    """One part of a stage, with its own peak and its own work."""

    name: str
    terms: dict[str, int] = field(default_factory=dict)
    """Anonymous bytes beyond what is resident, by what they are for."""
    mapped: int = 0
    """Bytes of weight files read through the page cache."""
    operations: float = 0.0
    """In the compute type."""
    exact_operations: float = 0.0
    """In fp32 or fp64, counted as fp32."""
    moved: float = 0.0
    """Bytes that go through memory without a product that hides them."""
    models: int = 1
    """That are loaded from each mapped file."""

    def in_fp32(self) -> Phase:
        """The same where weights of 16 bits are converted, since the processor does not multiply them."""
        if not self.operations:
            return self  # no model computes
        return replace(self, terms=self.terms | {"weights in fp32": 2 * self.models * self.mapped})


@dataclass(frozen=True)
class World:
    """What of a run every stage's estimate may ask."""

    original: Form
    dense: Form
    """The last form before quantization."""
    bf16: bool
    """Whether training computes in bf16, else in fp32."""
    halves: bool = True
    """Whether models compute in the 16 bits they are stored in, else in fp32."""

    @property
    def itemsize(self) -> int:
        """Bytes of a number that models compute with."""
        return 2 if self.halves else 4

    @property
    def converts(self) -> bool:
        """Whether weights of 16 bits are converted to compute with."""
        return not self.halves and self.original.dtype != "float32"


@dataclass(frozen=True)
class Effect:
    """What a stage does to the model, and what it takes."""

    form: Form
    phases: tuple[Phase, ...]
    train_tokens: int = 0
    by_general_rule: bool = False
    """Nothing is known of this kind of stage but its settings and traits."""


def forward(form: Form, tokens: float, length: int) -> float:
    """Operations of one pass through the layers; the head is counted apart."""
    q = form.queries
    attention = 4 * q * length / 2 * form.widths.layers
    return tokens * (2 * form.count("linear") + attention)


def head(form: Form, tokens: float) -> float:
    """Operations of one product with the head."""
    return 2.0 * tokens * form.shape.vocab * form.widths.hidden


def largest_linear(form: Form) -> int:
    """Entries."""
    return max((out * width for out, width in form.linears_of_a_layer()), default=0)


def gram_bytes(form: Form, limit: int) -> int:
    """fp32 Gram matrices of all linears' inputs, as many at a time as `limit` allows (`compress.calibrate`)."""
    one = sum(4 * width * width for _, width in form.linears_of_a_layer())
    biggest = max((4 * width * width for _, width in form.linears_of_a_layer()), default=0)
    return max(biggest, min(one * form.widths.layers, limit))


def micro_batch(settings: Any, bf16: bool) -> Batch:
    """Of a `compress.train.settings.Training`."""
    precision = getattr(settings.precision, "value", settings.precision)
    optimizer = settings.optimizer_name.lower()
    # AdamW's two in fp32, or in 8 bits; one of momentum alone
    moments = 2 if "8bit" in optimizer else 4 if optimizer in ("sgd", "lion", "adagrad", "muon") else MOMENTS
    return Batch(
        max(1, settings.batch // settings.accumulate // settings.devices),
        settings.length,
        {"bf16": True, "fp32": False}.get(precision, bf16),
        settings.activation_checkpointing,
        moments,
    )


def orthogonalizing(form: Form) -> float:
    """Operations of Muon's step: five Newton-Schulz iterations of three products for every matrix [m, n], m <= n."""
    sides = [sorted(shape) for shape in form.linears_of_a_layer()]
    return 5.0 * form.widths.layers * sum(4 * m * m * n + 2 * m**3 for m, n in sides)


def walk_terms(form: Form, world: World) -> dict[str, int]:
    """One window through the model without gradients: a layer's results at a time."""
    return {"activations": layer_activations(form, Batch(1, CALIBRATION_WINDOW, world.halves))} | loaded(form)


def encoding(before: Form, held: Mapping[str, int] | None = None) -> Phase:
    """Weights on their grids, one tensor at a time, beside what is `held` until the end."""
    # its codes, twice while their pieces are joined, and decoded in 16 bits
    terms = {"one weight": 4 * largest_linear(before)} | dict(held or {})
    return Phase("encoding", terms, before.bytes, moved=30.0 * before.count("linear"))


def training_work(
    settings: Any, form: Form, world: World, passes: int, trained: int, head_gradients: int = 1
) -> tuple[float, float, float]:
    """(operations, exact operations, bytes moved) of a training run: `passes` forward-sized ones of the student."""
    tokens, length = settings.tokens, settings.length
    passes += int(settings.activation_checkpointing)  # every layer once more
    operations = passes * forward(form, tokens, length) + forward(world.original, tokens, length)
    operations += (1 + head_gradients) * head(form, tokens) + head(world.original, tokens)
    steps = tokens / max(1, settings.batch * settings.length)
    if settings.optimizer_name == "Muon" and trained:
        operations += steps * orthogonalizing(form)
    if settings.validate_every:
        measured = tokens / settings.validate_every * settings.validate_tokens
        operations += forward(form, measured, length) + forward(world.original, measured, length)
        operations += head(form, measured) + head(world.original, measured)
    return operations, 0.0, steps * 28.0 * trained
