"""The chain of a config, stage by stage, in numbers: what each will weigh, hold and take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from compress.estimate.form import Form
from compress.estimate.machine import Machine
from compress.estimate.memory import ADAPTER_LIBRARIES, AFTER_TRAINING, Peak, kv_cache, resident, writing_own_text
from compress.estimate.stages import effect_of
from compress.estimate.work import Effect, Phase, World, forward, head
from compress.stage import DENSE, TEXT

EFFICIENCY = 0.5
"""Part of the matrix products' speed that a whole model reaches: the rest goes into what lies between the products."""
OWN_BATCH = 64
"""Windows the original writes side by side (`compress.runtime.sampling.BATCH`)."""
GPU_CONTEXT = 600_000_000
"""CUDA's own memory in a process: context, kernels, workspaces."""
HOST_ONLY = frozenset(
    {
        "libraries",
        "tokenizers",
        "texts",
        "reference states",
        "the tensor to write",
        "a cut tensor",
        "codes chosen",
        "checkpoint",
    }
)
"""Terms that stay in the host's memory when models compute on a GPU."""


@dataclass(frozen=True)
class Plan:
    """What a run is asked to do, as far as it decides what it takes."""

    stages: Mapping[str, Any]
    original: Form
    first: Form
    """What the chain starts from: the original unless another teacher is named."""
    evaluated_tokens: int
    """Of each of the two texts; none where nothing is measured."""
    own_tokens: int
    own_length: int
    own_written: bool
    """The original's own text lies in the store already."""


def chain(plan: Plan, known: Machine | None = None) -> list[tuple[str, Any, Effect, Form]]:
    """Name, stage, effect and the form before it, for every stage in order, on a machine; on a GPU without one."""
    bf16 = known is None or known.native_bf16
    halves = plan.original.dtype != "float32" if known is None else known.computes_in_half(plan.original.dtype)
    form, dense = plan.first, plan.first
    written = plan.own_written or plan.own_tokens < plan.own_length
    steps = []
    for name, stage in plan.stages.items():
        world = World(plan.original, dense, bf16, halves)
        effect = effect_of(stage, form, world)
        if TEXT in stage.reads and not written:
            effect = replace(effect, phases=(own_text(plan, world.itemsize), *effect.phases))
            written = True
        if world.converts:
            effect = replace(effect, phases=tuple(phase.in_fp32() for phase in effect.phases))
        steps.append((name, stage, effect, form))
        form = effect.form
        if DENSE in stage.needs and DENSE not in stage.takes:
            dense = form
    return steps


def predict(plan: Plan, known: Machine) -> list[dict[str, Any]]:
    """One row a stage, in order."""
    steps, on_gpu = chain(plan, known), chain(plan)
    references = reference_states(plan, known)
    rows: list[dict[str, Any]] = []
    for (name, stage, effect, before), (_, _, there, _) in zip(steps, on_gpu, strict=True):
        base = resident(plan.original.shape.vocab, references, TEXT in stage.reads)
        if any(row["train_tokens"] for row in rows):
            base["libraries"] += AFTER_TRAINING
        if before.linears.kind != "dense" or effect.form.rank:
            base["adapters' libraries"] = ADAPTER_LIBRARIES
        gpu = max(peak_of(phase, base).gpu for phase in there.phases)
        rows.append(row(name, stage, effect, base, known) | {"gpu_bytes": gpu})
    return rows


def world_of(plan: Plan, known: Machine) -> World:
    """What the first stage's estimate may ask, on this machine."""
    original = plan.original
    return World(original, original, known.native_bf16, known.computes_in_half(original.dtype))


def reference_states(plan: Plan, known: Machine) -> int:
    """Bytes of the original's hidden states on both texts, and of its head where that is no part of a file any more."""
    world, original = world_of(plan, known), plan.original
    states = 2 * world.itemsize * plan.evaluated_tokens * original.widths.hidden
    kept = world.converts and plan.evaluated_tokens > 0
    return states + (4 * original.shape.vocab * original.widths.hidden if kept else 0)


def own_text(plan: Plan, itemsize: int) -> Phase:
    """The original writes text for calibration and training, once per model."""
    original, length = plan.original, plan.own_length
    windows = plan.own_tokens // length
    batch = min(windows, OWN_BATCH)
    tokens = float(windows * length)
    # at every step, on average half full: the cache is read, grown (read, written) and repeated for the query heads
    cache = kv_cache(original, batch, length, itemsize)
    moved = -(-windows // batch) * length * (original.bytes + 0.5 * cache * (3 + 2 * original.shape.queries))
    operations = forward(original, tokens, length) + head(original, tokens)
    terms = writing_own_text(original, batch, length, itemsize)
    return Phase("the original's own text", terms, original.bytes, operations, 0.0, moved)


def row(name: str, stage: Any, effect: Effect, base: Mapping[str, int], known: Machine) -> dict[str, Any]:
    """A stage's figures, JSON-able."""
    peaks = {phase.name: peak_of(phase, base) for phase in effect.phases}
    highest = max(peaks, key=lambda phase: peaks[phase].host)
    seconds = {phase.name: seconds_of(phase, known) for phase in effect.phases}
    total = sum(seconds.values())
    training = sum(taken for part, taken in seconds.items() if part.startswith("training"))
    return {
        "name": name,
        "kind": stage.kind,
        "params": effect.form.count(),
        "params_non_embedding": effect.form.non_embedding,
        "bytes": effect.form.bytes,
        "peak_rss_bytes": peaks[highest].host,
        "peak_in": highest,
        "terms": dict(peaks[highest].terms),
        "mapped_bytes": max(peak.mapped for peak in peaks.values()),
        "seconds": total,
        "seconds_by_part": seconds,
        "train_tokens": effect.train_tokens,
        "tokens_per_second": effect.train_tokens / training if effect.train_tokens else 0.0,
        "by_general_rule": effect.by_general_rule,
    }


def peak_of(phase: Phase, base: Mapping[str, int]) -> Peak:
    """What is resident and what the phase adds."""
    terms = {**base, **phase.terms}
    on_gpu = sum(size for term, size in terms.items() if term not in HOST_ONLY and term != "adapters' libraries")
    return Peak({term: size for term, size in terms.items() if size}, phase.mapped, on_gpu + phase.mapped + GPU_CONTEXT)


def seconds_of(phase: Phase, known: Machine) -> float:
    """Products at the fraction of their speed that a model reaches, bytes at the speed of memory."""
    compute = known.bf16 if known.native_bf16 else known.fp32
    return (
        phase.operations / (EFFICIENCY * compute)
        + phase.exact_operations / (EFFICIENCY * known.fp32)
        + phase.moved / known.bandwidth
    )
