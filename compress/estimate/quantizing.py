"""What the quantization stages take: calibration of one layer at a time, and training through the rounding.

Calibration (`compress.quant.calibrated`), n tokens, width h, queries q, neurons m: eight streams of n h (of
the original and of the quantized model before, after and between layers), the original's inputs of every group, the
quantized model's of one group and their difference, and of one group the moments H and C - H with their factors.
Choices are kept to the end: a level in 16 bits, scales in fp32 and, where training goes on from them, the goal in fp32.

Training: latents and a factor for every scale in fp32 with gradients and AdamW's moments, the start beside them; every
layer keeps its weight in the compute type and its levels in 8 bits for the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from compress.data.windows import CALIBRATION_WINDOW
from compress.errors import UserError
from compress.estimate.form import Form
from compress.estimate.grids import BudgetFormat, OwnFormat, block_of_grid, laid_out
from compress.estimate.layouts import DENSE
from compress.estimate.memory import AUTOCAST, Batch, layer_activations, loaded, training
from compress.estimate.work import (
    GRAMS_AT_A_TIME,
    Effect,
    Phase,
    World,
    encoding,
    forward,
    gram_bytes,
    head,
    largest_linear,
    micro_batch,
    training_work,
)

LEVEL, SCALE, GOAL = 2, 4, 4
"""Bytes of what calibration keeps: a level, a scale, and what the level should have been."""
SAVED_LEVEL = 1
"""A level as the backward pass reads it."""
MEASURED_TOKENS = 4096
"""Of `compress.quant.mixing`."""
WEIGHT_COPIES = 48
"""Bytes for an entry of the layer being solved: W, W', shifts and errors in fp32, the solution in fp64."""
SURE = 0.98
"""Of the bits that the smallest grids take: a budget below is too little, whatever is rounded."""
OUTPUT_ROWS = 1024
"""Of `compress.quant.output_moments`."""
COUPLED = 25
"""How much longer feedback takes where rows are rounded together, a few at a time: measured."""
LOGITS = 4
"""fp32 copies of a window's logits while gradients go through them."""
MOMENT_COPIES = 44
"""Bytes for an entry of H: H, C - H, sums, damped and inverse in fp32, three factors in fp64."""


def post_training(stage: Any, form: Form, world: World) -> Effect:
    """Round to nearest tensor by tensor, or calibrate layer by layer first."""
    grid = stage.grid_name
    after = _placed(form, grid, stage)
    if not stage.reads:
        return Effect(after, (encoding(form),))
    choices = _choices(stage, form, grid, False)
    phases = (*_looking_at_outputs(stage, form, world), calibrating(stage, form, world, choices))
    return Effect(after, (*phases, encoding(form, choices)))


def mixed(stage: Any, form: Form, world: World) -> Effect:
    """Sensitivities first, then one layer after the other."""
    choices = _choices(stage, form, _with_most_scales(stage), False)
    looked = (_measuring(stage, form, world), *_looking_at_outputs(stage, form, world))
    phases = (*looked, calibrating(stage, form, world, choices), encoding(form, choices))
    return Effect(_budgeted(stage, form), phases)


def _measuring(stage: Any, form: Form, world: World) -> Phase:
    """Sensitivities: one window with gradients, Gram matrices, one layer on every grid."""
    n = min(MEASURED_TOKENS, stage.calibration.tokens)
    window = Batch(1, CALIBRATION_WINDOW, world.halves)
    terms = {
        "activations": form.widths.layers * layer_activations(form, window),
        "logits": 3 * 4 * window.tokens * form.shape.vocab,
        "Gram matrices": gram_bytes(form, GRAMS_AT_A_TIME),
        "one weight on a grid": 5 * 4 * max(largest_linear(form), form.count("embedding")),
    }
    solved = len(stage.candidates) * _feedback(form)
    walks = 3 * forward(form, n, CALIBRATION_WINDOW) + 3 * head(form, n)
    return Phase("measuring sensitivity", terms, form.bytes, walks, _moments(form, n) + solved)


def _with_most_scales(stage: Any) -> str:
    return max(stage.candidates, key=lambda name: 1 / (block_of_grid(name) or 1 << 20))


def qat(stage: Any, form: Form, world: World) -> Effect:
    """Calibrate, train latents, scales and norms against the original, encode."""
    return Effect(_placed(form, stage.grid, stage), _learning(stage, form, world, stage.grid), stage.train.tokens)


def qat_mixed(stage: Any, form: Form, world: World) -> Effect:
    """The same, after a grid was chosen for every tensor."""
    phases = (_measuring(stage, form, world), *_learning(stage, form, world, _with_most_scales(stage)))
    return Effect(_budgeted(stage, form), phases, stage.train.tokens)


def _learning(stage: Any, form: Form, world: World, grid: str) -> tuple[Phase, ...]:
    linear, scales = form.count("linear"), _scales(form, grid)
    trains = getattr(stage.trains, "value", stage.trains)
    low_rank = replace(form, rank=stage.rank).adapters if trains == "lora" else 0
    trained = scales + form.count("other") + (linear if trains == "weights" else low_rank)
    batch = micro_batch(stage.train, world.bf16)
    # what is no linear layer stays in fp32; latents, factors and the scales they start from
    master = 4 * (form.count() + 2 * scales + low_rank)
    start = _choices(stage, form, grid, True)
    terms = training(form, batch, trained, master=master)
    terms["autocast copies"] = (AUTOCAST if batch.bf16 else 4) * linear
    terms |= start
    terms |= {"levels for the backward pass": SAVED_LEVEL * linear, "one layer rounded": 12 * largest_linear(form)}
    held = start | {term: terms[term] for term in ("weights", "gradients", "optimizer state")}
    return (
        *_looking_at_outputs(stage, form, world),
        calibrating(stage, form, world, start),
        Phase("training", terms, world.original.bytes, *training_work(stage.train, form, world, 3, trained)),
        encoding(form, held),
    )


def _looking_at_outputs(stage: Any, form: Form, world: World) -> Iterator[Phase]:
    """Gradients at the outputs of all linear layers, a window at a time, and their second moments."""
    n, length = stage.calibration.output_tokens, stage.calibration.length
    if not n:
        return
    window = Batch(1, length, world.halves)
    terms = {
        "activations": form.widths.layers * layer_activations(form, window),
        "logits": LOGITS * 4 * window.tokens * form.shape.vocab,
        "moments of outputs": _output_moments(form),
    }
    sums = n * _output_moments(form) / 2  # two operations for each entry of four bytes
    passes = 2 * (forward(form, n, length) + head(form, n))  # back to the inputs: weights have no gradients
    yield Phase("what outputs do to the answers", terms, form.bytes, passes, sums, models=2)


def _output_moments(form: Form) -> int:
    return form.widths.layers * sum(4 * out * min(out, OUTPUT_ROWS) for out, _ in form.linears_of_a_layer())


def calibrating(stage: Any, form: Form, world: World, choices: Mapping[str, int]) -> Phase:
    """The walk of both models through their layers, and one layer's solution."""
    h, m, q = form.widths.hidden, form.widths.mlp, form.queries
    widest = max(h, m, q)
    n = stage.calibration.enough(widest)
    terms = loaded(form) | {
        "streams": world.itemsize * n * 8 * h,
        "inputs of a layer": world.itemsize * n * (2 * h + q + m + 2 * widest),
        "moments": MOMENT_COPIES * widest * widest,
        "one layer solved": WEIGHT_COPIES * largest_linear(form),
        # of the quantized model: what was read is mapped, where it did not have to be converted
        "changed weights": 0 if world.converts else world.itemsize * form.count("linear"),
    }
    coupled = bool(stage.calibration.output_tokens)
    if coupled:
        terms["moments of outputs"] = _output_moments(form)
    passes = 4.5 * forward(form, n, stage.calibration.length)
    solved = 2 * _moments(form, n) + (2 + stage.calibration.rounds) * _feedback(form, COUPLED if coupled else 1)
    return Phase("calibrating", terms | dict(choices), form.bytes, passes, solved, models=2)


def _choices(stage: Any, form: Form, grid: str, goals: bool) -> dict[str, int]:
    each = LEVEL + (GOAL if goals else 0)
    outer = LEVEL * form.count("embedding", "head") if stage.embedding or hasattr(stage, "candidates") else 0
    return {"codes chosen": each * form.count("linear") + outer + 2 * SCALE * _scales(form, grid)}


def _scales(form: Form, grid: str) -> int:
    """How many the linear layers have."""
    rows = sum(out for out, _ in form.linears_of_a_layer()) * form.widths.layers
    block = block_of_grid(grid)
    return form.count("linear") // block if block else rows


def _moments(form: Form, tokens: int) -> float:
    """Operations of one sum of products for the inputs of every layer."""
    return 2.0 * tokens * sum(width * width for _, width in form.linears_of_a_layer()) * form.widths.layers


def _feedback(form: Form, pace: float = 1.0) -> float:
    """Operations of factors of every H and of rounding with feedback through it, which takes `pace` times as long."""
    each = (width**3 + 2.0 * pace * out * width * width for out, width in form.linears_of_a_layer())
    return form.widths.layers * sum(each)


def _placed(form: Form, grid: str, stage: Any) -> Form:
    shapes = list(form.linears_of_a_layer())

    def fits(name: str) -> bool:
        return any(OwnFormat(name).fits(*shape) for shape in shapes)

    if shapes and not fits(grid):
        some = ", ".join(name for name in ("int8", "q8_0", "q4_0", "nf4_b32", "int4_g32") if fits(name))
        raise UserError(
            f"no linear layer of this model has a shape that runs on the grid {grid}.",
            f"These run: {some}. Type quant@stages.NAME=grid stages.NAME.grid=GRID, or prune to other widths: "
            "stages.prune.multiple=64.",
        )
    activations = getattr(stage.activations, "value", stage.activations)
    linears = laid_out(grid, stage.embedding is None, activations == "int8_token")
    return replace(form, linears=linears, embeddings=OwnFormat(stage.embedding) if stage.embedding else DENSE)


def _budgeted(stage: Any, form: Form) -> Form:
    fixed = OwnFormat(stage.embedding) if stage.embedding else None
    size, outer = 4 if form.dtype == "float32" else 2, form.count("embedding", "head")
    free = form.count("linear") + (0 if fixed else outer)
    placed, dense = replace(form, embeddings=fixed or DENSE).bytes, replace(form, embeddings=DENSE).bytes
    rest = placed - size * free
    # an embedding whose grid is given is one of the weights that `bits` is the average of
    taken = 8 * (placed - dense + size * outer) if fixed else 0
    weights = form.count("linear") + outer
    bits = max(0.0, (stage.bits * weights - taken) / free)
    if stage.megabytes is not None:
        bits = max(0.0, 8 * (stage.megabytes * 1e6 - rest) / free)
    budget = BudgetFormat(bits, tuple(stage.candidates))
    least = budget.least_bits(form.linears_of_a_layer())
    if bits < SURE * least:
        # rounded up, with room for the tensors' names
        needed = math.ceil(100 * (least * free + taken) / weights) / 100
        asked, enough = f"bits={stage.bits}", f"bits={needed}"
        if stage.megabytes is not None:
            needed = math.ceil(1e-4 * 1.02 * (rest + least * free / 8)) / 100
            asked, enough = f"megabytes={stage.megabytes}", f"megabytes={needed}"
        raise UserError(
            f"stages.quant.{asked} is too little: with {', '.join(stage.candidates)}, this model takes {needed} "
            f"{enough.partition('=')[0]} at least.",
            f"Give stages.quant.{enough} or more, or smaller quant.candidates.",
        )
    return replace(form, linears=budget, embeddings=fixed or budget)
