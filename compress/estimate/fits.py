"""What fits: ways to train a model of these sizes, what each holds, and where that goes.

    full            16 bytes a parameter (ZeRO, arXiv 1910.02054, sec. 3.1), activations of a micro-batch
    accumulated     one window at a time
    checkpointed    of every layer only its input, and one layer at a time (arXiv 1604.06174)
    LoRA            frozen base in 16 bits, adapters of rank 16 (arXiv 2106.09685)
    QLoRA           the base in NF4 with double quantization (arXiv 2305.14314)
    FSDP over N     the student's weights, gradients and state divided by N (ZeRO stage 3)

The teacher is counted in each: distillation needs it beside the student.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from compress.errors import UserError
from compress.estimate.around import on_host
from compress.estimate.form import Form
from compress.estimate.layouts import Format
from compress.estimate.machine import Machine
from compress.estimate.memory import MASTER, Batch, layer_activations, loaded, training
from compress.estimate.predict import GPU_CONTEXT
from compress.hardware import memory_bytes
from compress.train.settings import Strategy

GIB = 1 << 30
RANK = 16
GPUS: dict[str, int] = {"8 GB": 8, "16 GB": 16, "24 GB": 24, "48 GB": 48, "80 GB": 80, "141 GB": 141}
"""Sizes that are sold, in 2^30 bytes."""
USABLE = 0.92
"""Of a GPU or of this machine's memory: the rest is fragmentation and other programs."""
SHARDED_OVER = "80 GB"
SURE = 0.85
"""Of what a stage is predicted to hold at most: where not even this fits, the prediction's error is no excuse."""


def check_memory(
    rows: Mapping[str, Mapping[str, Any]], stages: Mapping[str, Any], device: str, measuring: Mapping[str, int]
) -> None:
    """Refuse a chain of which a stage, or measuring its models, cannot fit: into a GPU's memory, or on a CPU into this
    machine's.

    Args:
        rows: what is predicted of each stage.
        stages: the stages.
        device: cpu or cuda.
        measuring: what is predicted of that (`around.measuring`).

    Raises:
        UserError: naming what there is and what is needed.
    """
    there = _gpu_bytes() if device == "cuda" else memory_bytes()
    where = "the GPU" if device == "cuda" else "this machine"
    for name, row in rows.items():
        needed = row["gpu_bytes" if device == "cuda" else "peak_rss_bytes"]
        settings = getattr(stages[name], "train", None)
        if settings is not None and settings.strategy is Strategy.fsdp:
            needed //= settings.devices
        if SURE * needed > there:
            smaller = (
                "Train in smaller pieces (train.accumulate=2 train.activation_checkpointing=true), with smaller "
                "moments (train=adamw_8bit), or adapters only (+pipeline=qlora); mode=estimate shows what fits."
            )
            raise UserError(
                f"stage {name!r} needs about {needed / GIB:.0f} GiB of memory, and {where} has {there / GIB:.0f} GiB.",
                smaller if settings is not None else f"Drop it with '~stages.{name}', or give it less text to measure.",
            )
    needed = measuring.get("gpu_bytes", 0) if device == "cuda" else on_host(measuring)
    if SURE * needed > there:
        raise UserError(
            f"measuring the model needs about {needed / GIB:.0f} GiB of memory, and {where} has {there / GIB:.0f} GiB.",
            "Leave measuring out (evaluate.measure=false): methods without data (+pipeline=nf4, "
            "quant@stages.quant=int8) then rewrite the model tensor by tensor.",
        )


def _gpu_bytes() -> int:
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


def ways(student: Form, teacher: Form, batch: Batch, known: Machine, libraries: int) -> list[dict[str, Any]]:
    """A row for every way to train, from the most to the least memory.

    Args:
        student: dense, as wide as it will be.
        teacher: the original.
        batch: the micro-batch configured.
        known: this machine.
        libraries: bytes of host memory that hold no model.
    """
    single = replace(batch, windows=1)
    everything = student.count()
    adapted = replace(student, rank=RANK)
    four_bit = replace(adapted, linears=Format("nf4"))
    base, small = 2 * student.count(), sum(loaded(four_bit).values()) + 2 * student.count("embedding", "head", "other")
    full = training(student, batch, everything, master=MASTER * everything)
    one = training(student, single, everything, master=MASTER * everything)
    kept = student.widths.layers * 4 * single.tokens * student.widths.hidden + layer_activations(student, single)
    found = {
        "full fine-tuning": full,
        "... one window at a time (train.accumulate)": one,
        "... and activation checkpointing": one | {"activations": kept},
        f"LoRA, rank {RANK}": training(adapted, single, adapted.adapters, base + 4 * adapted.adapters),
        f"QLoRA, rank {RANK}": training(adapted, single, adapted.adapters, small),
    }
    rows = []
    for name, terms in found.items():
        rows.append(_row(name, sum(terms.values()), 2 * teacher.count(), known, libraries))
    rows.append(_sharded(student, teacher, found["... and activation checkpointing"]))
    return rows


def _sharded(student: Form, teacher: Form, terms: dict[str, int]) -> dict[str, Any]:
    """FSDP2: what is divided, and what each GPU holds alone: teacher, activations, the loss, two layers gathered in 16
    bits."""
    divided = sum(terms[term] for term in ("weights", "gradients", "optimizer state"))
    largest = max(sum(p.numel for p in student.layer), student.count("embedding"))
    alone = terms["activations"] + terms["loss"] + 2 * 2 * largest
    held = 2 * teacher.count()
    gpus = gpus_needed(divided, held + alone + GPU_CONTEXT, GPUS[SHARDED_OVER] << 30)
    return {
        "way": f"FSDP, checkpointed, GPUs of {SHARDED_OVER}",
        "bytes": divided // max(1, gpus) + held + alone,
        "student_bytes": divided // max(1, gpus) + alone,
        "gpus": gpus,
        "here": False,
        "smallest_gpu": SHARDED_OVER if gpus else None,
    }


def gpus_needed(shared: int, own: int, size: int) -> int:
    """The fewest GPUs of `size` bytes that hold shared / N + own each; 0 if what each holds alone is too much."""
    room = int(USABLE * size) - own
    return 0 if room <= 0 else max(1, -(-shared // room))


def smallest_gpu(size: int) -> str | None:
    """The smallest that is sold and holds `size` bytes."""
    return next((name for name, gib in GPUS.items() if size + GPU_CONTEXT <= USABLE * (gib << 30)), None)


def _row(name: str, student: int, teacher: int, known: Machine, libraries: int) -> dict[str, Any]:
    total = student + teacher
    return {
        "way": name,
        "bytes": total,
        "student_bytes": student,
        "gpus": 1,
        "here": total + libraries <= USABLE * known.memory,
        "smallest_gpu": smallest_gpu(total),
    }
