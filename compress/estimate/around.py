"""What a run does around its stages, in seconds: it measures models, and writes, reloads and compares artifacts.

Passes over text are counted as everywhere in this package (`work`). A token written one by one reads every weight, and
costs transformers `CALL` for every layer on top.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from compress.estimate.form import Form
from compress.estimate.machine import Machine
from compress.estimate.memory import loaded, resident
from compress.estimate.predict import GPU_CONTEXT, Plan, chain, reference_states, seconds_of, world_of
from compress.estimate.work import Phase, World, forward, head
from compress.evaluate.settings import AT_ONCE

if TYPE_CHECKING:
    from compress.evaluate.settings import Evaluation
    from compress.export.base import Export

CALL = 2.5e-3
"""Seconds that one layer of transformers takes to be called on a processor, whatever it multiplies: measured."""
START = 8.0
"""Seconds until a fresh process has imported torch and transformers: measured."""
SPEED_RUNS = 4
"""`compress.evaluate.speed`: three and one that is not counted."""
TEXTS = 2


def around(plan: Plan, evaluation: Evaluation, exports: Mapping[str, Export], known: Machine) -> dict[str, float]:
    """Seconds by what is done: "measuring" all models of the pipeline, and "artifact NAME" for each export."""
    world = world_of(plan, known)
    forms = [plan.original] + [effect.form for _, _, effect, _ in chain(plan, known)]
    last = forms[-1]
    writing = {
        name: 3 * last.bytes / known.bandwidth + e.seconds_a_layer * last.widths.layers for name, e in exports.items()
    }
    if not evaluation.measure:
        return {f"artifact {name}": seconds for name, seconds in writing.items()}
    reading = sum(evaluating(form, plan.original, plan.evaluated_tokens, evaluation.window, known) for form in forms)
    behaving = 0.0
    for form in (plan.original, last):
        behaving += answering(form, world, evaluation, known)
        behaving += speed_runs(form, world, evaluation, known)
    found = {"measuring": reading + behaving}
    for name, export in exports.items():
        comparing = 2 * passes(last, export.probe_tokens, export.probe_tokens, 1, known)
        comparing += speed_runs(last, world, evaluation, known)
        again = evaluating(last, plan.original, plan.evaluated_tokens, evaluation.window, known)
        found[f"artifact {name}"] = writing[name] + START + comparing + again
    return found


def measuring(plan: Plan, evaluation: Evaluation, known: Machine) -> dict[str, int]:
    """Memory to measure the larger of the original and the model the chain begins with: it is loaded whole.

    Returns:
        `peak_rss_bytes` of the process, `mapped_bytes` of its files on top, which are read again in every window, and
        `gpu_bytes`; nothing where nothing is measured.
    """
    if not evaluation.measure:
        return {}
    world = world_of(plan, known)
    largest = max(plan.original, plan.first, key=lambda form: form.bytes)
    stored = 0 if world.converts else largest.bytes
    widened = 4 * largest.count() if world.converts else sum(loaded(largest).values())
    base = resident(largest.shape.vocab, reference_states(plan, known), False)
    return {
        "peak_rss_bytes": sum(base.values()) + widened,
        "mapped_bytes": stored,
        "gpu_bytes": largest.bytes + GPU_CONTEXT,
    }


def on_host(memory: Mapping[str, int]) -> int:
    """What `measuring` needs of this machine: files that are read in every window must stay in memory too."""
    return memory.get("peak_rss_bytes", 0) + memory.get("mapped_bytes", 0)


def passes(form: Form, tokens: float, length: int, heads: int, known: Machine) -> float:
    """Seconds to read so many tokens in windows, with so many products with the head."""
    return seconds_of(Phase("", operations=forward(form, tokens, length) + heads * head(form, tokens)), known)


def evaluating(form: Form, original: Form, tokens: int, window: int, known: Machine) -> float:
    """Seconds for perplexity and KL on both texts; the original's states are kept, its logits are not."""
    of_original = seconds_of(Phase("", operations=TEXTS * head(original, tokens)), known)
    return passes(form, TEXTS * tokens, window, 1, known) + of_original


def a_token(form: Form, world: World, known: Machine) -> float:
    """Seconds to write one token."""
    widened = 2 if world.converts else 1
    return widened * form.bytes_for_a_token / known.bandwidth + CALL * form.widths.layers


def answering(form: Form, world: World, evaluation: Evaluation, known: Machine) -> float:
    """Seconds to answer the prompts: for every token of a batch the weights are read once, and multiplied for each."""
    prompts, tokens = len(evaluation.prompts), evaluation.answer_tokens
    reading = math.ceil(prompts / AT_ONCE) * tokens * a_token(form, world, known)
    return reading + passes(form, prompts * tokens, tokens, 1, known)


def speed_runs(form: Form, world: World, evaluation: Evaluation, known: Machine) -> float:
    """Seconds to measure how fast a model reads and writes."""
    if not evaluation.speed:
        return 0.0
    reading = passes(form, evaluation.prefill_tokens, evaluation.prefill_tokens, 0, known)
    return SPEED_RUNS * (reading + evaluation.decode_tokens * a_token(form, world, known))
