"""`mode=estimate`: everything that can be said before a run, as one JSON value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from compress.arch import adapter_for
from compress.data.windows import readable
from compress.errors import speaking_of
from compress.estimate.around import around, measuring, on_host
from compress.estimate.fits import USABLE, ways
from compress.estimate.form import Form
from compress.estimate.formats import bytes_per_format, rule_of_thumb
from compress.estimate.gguf import read_words
from compress.estimate.machine import Machine, as_dict, machine
from compress.estimate.memory import kv_cache, resident
from compress.estimate.predict import Plan, chain, predict
from compress.estimate.subject import Subject, subject_in, subject_of
from compress.estimate.work import micro_batch
from compress.preparation import available_threads, check_shapes
from compress.stage import last_grids
from compress.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from compress.config import Config

SOURCES = {
    "parameters": "counted in closed form from config.json (compress.arch)",
    "bytes on disk": "the formats' own layouts, headers included (QLoRA, arXiv 2305.14314; ggml-common.h)",
    "weights, gradients, optimizer state": "ZeRO, arXiv 1910.02054, sec. 3.1: 16 bytes a trained parameter",
    "activations": "term by term after Korthikanti et al., arXiv 2205.05198, eq. 2",
    "checkpointing": "Chen et al., arXiv 1604.06174",
    "adapters": "LoRA, arXiv 2106.09685; QLoRA, arXiv 2305.14314",
    "operations": "Kaplan et al., arXiv 2001.08361, sec. 2.1",
    "rule of thumb": "M = P x 4 / (32 / Q) x 1.2 (Substratus, 2023, after EleutherAI's Transformer Math 101)",
    "decode": "every weight is read once a token (roofline: Williams et al., doi 10.1145/1498765.1498785)",
}

PREDICTED = ("bytes", "peak_rss_bytes", "gpu_bytes", "seconds")
"""What a run keeps of a stage's estimate: what it then measures, and what `check_memory` looks at."""


def run_estimate(config: Config, cache: Path) -> dict[str, Any]:
    """The estimate of a built config. Reads config.json and, where there is one, tokenizer.json; loads nothing.

    Raises:
        UserError: the model cannot be found, or a stage cannot work on it: whatever a run would refuse it for.
    """
    subject = subject_of(config.model)
    with speaking_of("model", "teacher"):
        teacher = subject if config.teacher is None else subject_of(config.teacher)
    known = machine(Store(cache / "store"), config.threads or available_threads(), measure=False)
    check_shapes(config.stages, subject.config, teacher.config)
    for export in config.export.values():
        if not export.optional:
            export.check_grids(last_grids(config.stages))
    plan = plan_of(config, subject, teacher, own_written=False)
    stages = predict(plan, known)
    memory = measuring(plan, config.evaluate, known)
    whole = {"peak_rss_bytes": on_host(memory), "peak_in": "the original, loaded whole"}
    measured = [{"name": "measuring", **whole}] if memory else []
    last = final_form(plan)
    words = read_words(subject.folder, plan.first.shape.vocab)
    formats = {"original": bytes_per_format(plan.first, words)}
    if last.widths != plan.first.widths:
        formats["after pruning"] = bytes_per_format(last, words)
    return {
        "mode": "estimate",
        "model": described(subject, plan.first),
        "machine": as_dict(known),
        "formats": formats,
        "stages": stages,
        "around": around(plan, config.evaluate, config.export, known),
        "measuring": memory,
        "decode": decode_roofline(plan, known),
        "rule_of_thumb": rules(plan.first),
        "training": training_ways(config, plan, last, known),
        "needs": needs([*stages, *measured], known),
        "sources": SOURCES,
    }


def plan_of(config: Config, subject: Subject, teacher: Subject, own_written: bool) -> Plan:
    """What of a config decides what it takes."""
    return Plan(
        stages=config.stages,
        original=teacher.form,
        first=subject.form,
        evaluated_tokens=config.evaluate.tokens if config.evaluate.measure else 0,
        own_tokens=config.own_text.tokens,
        own_length=readable(config.own_text.length, subject.config),
        own_written=own_written,
    )


def predicted(
    config: Config, folders: tuple[Path, Path], store: Store, own_written: bool
) -> tuple[dict[str, Any], dict[str, float], dict[str, int]]:
    """For a run: stage name -> its figures of `PREDICTED`, what is done around the stages -> seconds, and the memory
    that measuring takes; with this machine measured by torch.

    Args:
        config: of the run.
        folders: of the model it starts from and of the original.
        store: keeps the machine's figures.
        own_written: the original's own text is there already.
    """
    known = machine(store, config.threads or available_threads(), measure=True)
    first, original = (subject_in(folder, folder.name) for folder in folders)
    plan = plan_of(config, first, original, own_written)
    stages = {row["name"]: {key: row[key] for key in PREDICTED} for row in predict(plan, known)}
    return stages, around(plan, config.evaluate, config.export, known), measuring(plan, config.evaluate, known)


def described(subject: Subject, form: Form) -> dict[str, Any]:
    """The model in figures."""
    shape = form.shape
    return {
        "name": subject.name,
        "family": adapter_for(subject.config).family,
        "params": form.count(),
        "params_non_embedding": form.non_embedding,
        "dtype": form.dtype,
        "layers": shape.layers,
        "hidden": shape.hidden,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "mlp": shape.mlp,
        "vocab": shape.vocab,
        "tied": shape.tied,
        "kv_cache_bytes_per_token": kv_cache(form, 1, 1),
    }


def final_form(plan: Plan) -> Form:
    """The dense model of the widths that the chain ends with."""
    effects = [effect for _, _, effect, _ in chain(plan)]
    return replace(plan.first, widths=effects[-1].form.widths) if effects else plan.first


def rules(form: Form) -> dict[str, dict[str, int]]:
    """Memory to serve the model in Q bits: the rule, and the weights and 1,024 tokens of KV cache counted."""
    cache = kv_cache(form, 1, 1024)
    exact = {bits: form.count() * bits // 8 for bits in (32, 16, 8, 4)}
    return {
        f"{bits} bits": {"rule": rule_of_thumb(form.count(), bits), "weights": exact[bits], "kv_cache_1024": cache}
        for bits in exact
    }


def decode_roofline(plan: Plan, known: Machine) -> list[dict[str, Any]]:
    """Most tokens per second that writing one sequence can reach here: bandwidth / bytes read for a token."""
    forms = {"original": plan.first} | {name: effect.form for name, _, effect, _ in chain(plan, known)}
    return [
        {
            "after": name,
            "bytes_per_token": form.bytes_for_a_token,
            "tokens_per_second": known.bandwidth / form.bytes_for_a_token,
        }
        for name, form in forms.items()
    ]


def training_ways(config: Config, plan: Plan, last: Form, known: Machine) -> list[dict[str, Any]]:
    """What each way to train would hold, with the shared training settings."""
    batch = micro_batch(config.train, known.native_bf16)
    held = sum(resident(plan.first.shape.vocab, 0, True).values())
    return ways(last, plan.original, batch, known, held)


def needs(stages: Sequence[Mapping[str, Any]], known: Machine) -> list[str]:
    """One sentence for every stage that does not fit this machine, and one if all do."""
    room = USABLE * known.memory
    short = [s for s in stages if s["peak_rss_bytes"] > room]
    if not short:
        return ["every stage fits this machine"] if stages else []
    return [
        f"{s['name']!r} holds {s['peak_rss_bytes'] / 1e9:.1f} GB at its peak ({s['peak_in']}); "
        f"this machine has {known.memory / 1e9:.1f} GB"
        for s in short
    ]
