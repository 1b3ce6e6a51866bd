"""What each kind of stage does to a model and takes of the machine: one function a kind, and the table of them.

To add one: write a function of (stage, form before it, world) and enter it below. A kind without an entry is estimated
by `general`, from its fields (`train`, `calibration_tokens`, `block`, `rank`) and its traits, and the output says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from compress.data.windows import CALIBRATION_WINDOW
from compress.estimate.form import Form
from compress.estimate.layouts import Format
from compress.estimate.memory import GRADIENT, MASTER, Batch, layer_activations, loaded, training
from compress.estimate.quantizing import mixed, post_training, qat, qat_mixed
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
    walk_terms,
)
from compress.stage import ADAPTER, DENSE, QUANTIZED

BATCH_TOKENS = 1024
"""That go through a layer together: of compress.layerwise, which brings torch."""
HEAD_ROWS = 8192
"""Rows of a head that are solved together: of compress.prune.readers."""
LOGIT_ROWS = 128
"""Positions whose logits are in memory together: of compress.prune.text_loss."""
Rule = Callable[[Any, Form, World], Effect]


def prune(stage: Any, form: Form, world: World) -> Effect:
    """One walk over the calibration text for all that is scored, then one cut tensor in memory at a time."""
    after = replace(form, widths=stage.widths(form.config))
    n = stage.calibration_tokens
    walk = forward(form, n, CALIBRATION_WINDOW)
    groups, layers = (getattr(value, "value", value) for value in (stage.importance, stage.layer_importance))
    phases = []
    if groups in ("taylor", "fisher"):
        phases.append(Phase("scoring, forward and back", _gates(form, world), form.bytes, 3 * walk + 3 * head(form, n)))
    elif groups in ("activation", "wanda") or layers in ("block_influence", "angular"):
        phases.append(Phase("scoring", walk_terms(form, world), form.bytes, walk))
    gone = form.widths.layers - after.widths.layers
    if gone and layers == "perplexity":
        # every candidate shares the stream up to the layer it lacks; the losses need the head
        measured = min(n, stage.removal_tokens)
        passes = gone * form.widths.layers / 2 * forward(form, measured, CALIBRATION_WINDOW)
        passes += gone * form.widths.layers * head(form, measured)
        phases.append(Phase("removing layers one by one", walk_terms(form, world), form.bytes, passes))
    cut = Phase("cutting", {"a cut tensor": 2 * largest_linear(after)}, form.bytes, moved=2.0 * after.bytes)
    return Effect(after, (*phases, cut))


def _gates(form: Form, world: World) -> dict[str, int]:
    """Terms of gradients of gates: some windows' streams before every layer, one layer with its gradients."""
    batch = Batch(BATCH_TOKENS // CALIBRATION_WINDOW, CALIBRATION_WINDOW, world.halves)
    h, m = form.widths.hidden, form.widths.mlp
    return {
        "streams": world.itemsize * batch.tokens * h * (form.widths.layers + 1),
        "one layer, its gradients": 2 * layer_activations(form, batch),
        "contributions": 3 * 4 * batch.tokens * m,
        # as computed, and in 32 bits themselves, their softmax and their gradient; the gradient as computed
        "logits": (2 * world.itemsize + 3 * 4) * LOGIT_ROWS * form.shape.vocab,
    }


def compensate(stage: Any, form: Form, world: World) -> Effect:
    """The residual streams of both models over all calibration tokens, and one layer's normal equations.

    At most alive at once, per token: 10 streams (h each: embedded and before the layer, for student and
    teacher; what attention adds, for both; after the layer, for both; what the neurons add; where channels are cut,
    three of the teacher's once more), one in fp32, and the inputs of both projections.
    """
    n, h, m = stage.calibration_tokens, form.widths.hidden, form.widths.mlp
    q = form.queries
    teacher = world.original
    narrowed = 3 if h < teacher.widths.hidden else 0
    # of the widest projection; a head of its own is solved some rows at a time
    rows = m if form.shape.tied else max(m, min(HEAD_ROWS, form.shape.vocab))
    terms = {
        "streams": world.itemsize * n * ((10 + narrowed) * h + q + m) + 4 * n * h,
        "normal equations": m * m * (4 + 4 + 8 + 8) + rows * h * (4 + 8 + 8 + 8),
        "solved weights": 0 if world.converts else world.itemsize * form.widths.layers * h * (m + q),
    }
    passes = forward(teacher, n, CALIBRATION_WINDOW) + 1.5 * forward(form, n, CALIBRATION_WINDOW)
    wide = teacher.widths.hidden
    normal = form.widths.layers * 2.0 * n * (m * m + m * h + q * q + q * h + 2 * (h * h + h * wide))
    solve = form.widths.layers * 2 * (m**3 / 3 + 2 * m * m * h + q**3 / 3 + 2 * q * q * h)
    outputs = sum(out for out, _ in form.linears_of_a_layer())
    solve += form.widths.layers * 2 * (2 * h**3 / 3 + h * (2 * h + wide) * outputs)
    fit = Phase("least squares", terms, form.bytes + teacher.bytes, passes, normal + solve)
    return Effect(form, (fit, _write(form)))


def in_steps(stage: Any, form: Form, world: World) -> Effect:
    """Prune, compensate and heal, once a step; every step as if it had the last one's widths."""
    parts = [part for part in (stage.prune, stage.compensate, stage.healing(1 / stage.steps)) if part is not None]
    return repeated(parts, form, world, [f"step {step + 1}" for step in range(stage.steps)])


def search(stage: Any, form: Form, world: World) -> Effect:
    """Prune, compensate, heal briefly, and two passes of two models over what candidates are judged on.

    Which candidate wins is not known before; what comes out is taken to be the largest.
    """
    possible, _ = stage.possible(form.config)
    forms, phases, tokens = list[Form](), list[Phase](), 0
    for name, (prune_stage, _) in possible.items():
        parts = [part for part in (prune_stage, stage.compensate, stage.healing(stage.brief)) if part is not None]
        effect = repeated(parts, form, world, [name])
        work = 2 * (
            forward(form, stage.judge_tokens, CALIBRATION_WINDOW)
            + forward(effect.form, stage.judge_tokens, CALIBRATION_WINDOW)
        )
        judged = Phase(f"judging, {name}", walk_terms(form, world), form.bytes + effect.form.bytes, work)
        forms.append(effect.form)
        phases, tokens = [*phases, *effect.phases, judged], tokens + effect.train_tokens
    return Effect(max(forms, key=lambda found: found.bytes, default=form), tuple(phases), tokens)


def repeated(parts: list[Any], form: Form, world: World, rounds: list[str]) -> Effect:
    """Stages one after the other, in every round from the start."""
    after, phases, tokens = form, list[Phase](), 0
    for name in rounds:
        after = form
        for part in parts:
            effect = effect_of(part, after, world)
            after, tokens = effect.form, tokens + effect.train_tokens
            phases += [replace(phase, name=f"{phase.name}, {name}") for phase in effect.phases]
    return Effect(after, tuple(phases), tokens)


def distill(stage: Any, form: Form, world: World) -> Effect:
    """Full fine-tuning against the original; embedding and head stay as they are unless told otherwise."""
    trained = form.count() if stage.embeddings else form.count("linear", "other")
    return Effect(form, (*_teaching(stage, world), *_full(stage.train, form, world, trained)), stage.train.tokens)


def _teaching(stage: Any, world: World) -> Iterator[Phase]:
    """What is done to the teacher first: a training of its own on the text, and its logits written down."""
    teacher, train = world.original, stage.train
    if stage.teacher_correction_tokens:
        batch = micro_batch(train, world.bf16)
        terms = training(teacher, batch, teacher.count(), master=4 * teacher.count())
        n = stage.teacher_correction_tokens
        work = 3 * (forward(teacher, n, train.length) + head(teacher, n))
        steps = n / max(1, train.batch * train.length)
        yield Phase("correcting the teacher", terms, teacher.bytes, work, moved=steps * 28.0 * teacher.count())
    if getattr(stage.teacher_store, "value", stage.teacher_store) != "none":
        terms = loaded(teacher) | {"logits": 2 * 4 * STORED_WINDOWS * train.length * teacher.shape.vocab}
        work = forward(teacher, train.tokens, train.length) + head(teacher, train.tokens)
        yield Phase("writing the teacher's logits", terms, teacher.bytes, work)


def qlora(stage: Any, form: Form, world: World) -> Effect:
    """Adapters on a frozen 4-bit base: Gram matrices first, then training of the adapters alone."""
    after = replace(form, rank=stage.rank)
    start = getattr(stage.start, "value", stage.start)
    phases = []
    if start != "zero":
        weighted = start == "weighted"
        biggest = 4 * largest_linear(form)
        square = 4 * max(form.widths.mlp, form.widths.hidden) ** 2
        terms = loaded(after) | {
            "Gram matrices": gram_bytes(form, GRAMS_AT_A_TIME) if weighted else 0,
            "one layer's factors": 4 * biggest + 4 * square,
        }
        tokens = stage.calibration_tokens if weighted else 0
        walk = forward(world.dense, tokens, CALIBRATION_WINDOW)
        sums = tokens * 2.0 * sum(width * width for _, width in form.linears_of_a_layer()) * form.widths.layers
        eigen = 9.0 * form.widths.layers * sum(min(out, width) ** 3 for out, width in form.linears_of_a_layer())
        phases.append(Phase("adapters from the residual", terms, world.dense.bytes, walk, sums + eigen))
    batch = micro_batch(stage.train, world.bf16)
    terms = training(after, batch, after.adapters, master=0)
    terms |= loaded(after) | {"one layer decoded": 2 * 4 * largest_linear(form)}
    if world.converts:
        terms["beside the codes, in fp32"] = 4 * form.count("embedding", "head", "other")
    # the adapters' own weights are in `loaded`
    phases.append(Phase("training", terms, world.original.bytes, *training_work(stage.train, form, world, 2, 0)))
    return Effect(after, tuple(phases), stage.train.tokens)


def general(stage: Any, form: Form, world: World) -> Effect:
    """From settings and traits: what trains, what is calibrated on, what it leaves behind."""
    after, phases = form, []
    if QUANTIZED in stage.gives:
        after = replace(after, linears=Format(*_guessed_grid(stage)))
    if ADAPTER in stage.gives:
        after = replace(after, rank=getattr(stage, "rank", 16))
    if getattr(stage, "calibration_tokens", 0):
        n = stage.calibration_tokens
        terms = walk_terms(form, world) | {
            "Gram matrices": gram_bytes(form, GRAMS_AT_A_TIME),
            "one layer's inputs": 4 * n * form.widths.hidden,
        }
        phases.append(Phase("calibrating", terms, form.bytes, 2 * forward(form, n, CALIBRATION_WINDOW)))
    tokens = 0
    if hasattr(stage, "train"):
        tokens = stage.train.tokens
        if DENSE in stage.needs:
            phases += _full(stage.train, form, world, form.count())
        else:
            batch = micro_batch(stage.train, world.bf16)
            terms = training(form, batch, after.adapters, master=0) | loaded(after)
            work = training_work(stage.train, form, world, 2, 0)
            phases.append(Phase("training", terms, world.original.bytes, *work))
    if after.linears != form.linears:
        phases.append(encoding(form))
    return Effect(after, tuple(phases) or (_write(form),), tokens, by_general_rule=True)


STORED_WINDOWS = 4
"""That a teacher's logits are computed for at a time (`compress.distill.teacher_store.BATCH`)."""
STAGES: dict[str, Rule] = {
    "prune": prune,
    "compensate": compensate,
    "prune_in_steps": in_steps,
    "prune_search": search,
    "distill": distill,
    "nf4": post_training,
    "int8": post_training,
    "grid": post_training,
    "mixed": mixed,
    "qat": qat,
    "qat_mixed": qat_mixed,
    "qlora": qlora,
}
"""Kind of stage -> its rule."""


def effect_of(stage: Any, form: Form, world: World) -> Effect:
    """By the table, or by the general rule."""
    return STAGES.get(stage.kind, general)(stage, form, world)


def _write(form: Form) -> Phase:
    return Phase("writing", {"the tensor to write": 2 * largest_linear(form)}, form.bytes, moved=2.0 * form.bytes)


def _full(settings: Any, form: Form, world: World, trained: int) -> tuple[Phase, ...]:
    """Training of all or most weights from fp32 masters, then writing what came out."""
    batch = micro_batch(settings, world.bf16)
    master = MASTER * form.count()
    terms = training(form, batch, trained, master=master)
    products = 2 if trained == form.count() else 1
    work = Phase("training", terms, world.original.bytes, *training_work(settings, form, world, 3, trained, products))
    held = {"weights": master, "gradients": GRADIENT * trained, "optimizer state": batch.moments * trained}
    waiting = held | {"the tensor to write": 2 * largest_linear(form)}
    return work, Phase("writing", waiting, form.bytes, moved=4.0 * form.bytes)


def _guessed_grid(stage: Any) -> tuple[str, int, bool]:
    """From the usual names of fields; 4 bits in blocks of 64 where nothing is said."""
    named = stage.kind.lower()
    if "8" in named or getattr(stage, "bits", 4) == 8:
        return "int8", 64, False
    block = next((getattr(stage, name) for name in ("block", "group", "group_size") if hasattr(stage, name)), 64)
    return ("nf4" if "nf4" in named else "int4"), int(block), bool(getattr(stage, "double_quant", False))
