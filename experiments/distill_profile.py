"""Where the time of a distillation step goes, and how near it is to what its matrix products alone would take.

    python experiments/distill_profile.py [--model DIR] [--batch 4] [--length 256] [--steps 3] [--trains layers|all]
        [--precision bf16|fp32] [--threads N]

The step is ours, as `distill_speed.py` measures it, under torch's profiler. Its operations are put in a few kinds by
their names, by processor time of their own. The bound: all products of a step (2 operations for each multiply-add;
the teacher forward, the student forward and backward, heads included; a frozen head needs no gradient) at the rate
that the fastest large product of this machine reaches in the same precision (bf16, or fp32 on processors without bf16
products), measured here on the same threads, so that other work on the machine slows both. The fraction of the bound
is that time over the step's.

A row goes to experiments/results/distill_profile.csv, and a table to standard output.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from distill_step import models, windows
from tables import append_row, versions

from compress.hardware import native_bf16
from compress.losses.logits import Logits
from compress.train.module import Distillation
from compress.train.settings import Training

KINDS = {
    "products": ("mm", "addmm", "bmm", "linear", "mkldnn_linear", "baddbmm"),
    "attention": ("scaled_dot_product", "flash_attention"),
    "loss rows": ("divergence_rows",),
    "optimizer and clipping": ("fused_adamw", "foreach_norm", "linalg_vector_norm", "foreach_mul", "clamp"),
    "casts and copies": ("copy_", "_to_copy", "to", "clone", "cat", "contiguous", "fill_", "zero_"),
    "activations": ("silu", "silu_backward", "gelu"),
    "sums and products, elementwise": (
        "add",
        "add_",
        "mul",
        "mul_",
        "sub",
        "div",
        "neg",
        "pow",
        "rsqrt",
        "mean",
        "sum",
    ),
}
"""Kind -> the beginnings or names of operations."""


def kind_of(operation: str) -> str:
    """The kind of an operation by its name, such as aten::mm."""
    name = operation.partition("::")[2] or operation
    for kind, names in KINDS.items():
        if name in names or any(len(part) > 8 and part in name for part in names):
            return kind
    return "everything else"


def operations(student: Any, teacher: Any, tokens: int) -> float:
    """Of all products of a step."""
    head = student.get_output_embeddings().weight

    def layers(model: Any) -> int:
        own = model.get_output_embeddings().weight
        return sum(p.numel() for p in model.parameters() if p.dim() == 2 and p is not own)

    training = 3 if head.requires_grad else 2
    heads = teacher.get_output_embeddings().weight.numel() + training * head.numel()
    return 2.0 * tokens * (layers(teacher) + 3 * layers(student) + heads)


def best_rate(dtype: torch.dtype, repeats: int = 5) -> float:
    """Operations per second of processor time in a large product; the best of some."""
    size = 2048
    a, b = (torch.randn(size, size, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        a @ b
        times.append(time.process_time() - begin)
    return float(2 * size**3 / min(times))


def main() -> None:
    """Profile and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="the embedded one by default")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--trains", choices=("layers", "all"), default="layers")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16" if native_bf16() else "fp32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    half = given.precision == "bf16"
    if given.model is None:
        from compress.source import EmbeddedModel

        given.model = EmbeddedModel().resolve().folder
    student, teacher = models(given)
    settings = Training(batch=given.batch, length=given.length, rate=1e-5)
    module = Distillation(student, teacher, Logits(), settings, given.steps + 1).eval()
    optimizer = module.configure_optimizers()["optimizer"]
    lengths = torch.full((given.batch,), given.length)

    def step(ids: torch.Tensor) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            batch = {"ids": ids, "lengths": lengths, "rows": torch.arange(given.batch), "share": torch.ones(())}
            loss = module.training_step(batch, 0)
        loss.backward()
        module.configure_gradient_clipping(optimizer, settings.clip)
        optimizer.step()
        optimizer.zero_grad()

    given.steps += 1
    batches = torch.split(windows(given, student.config.vocab_size), given.batch)
    step(batches[0])
    begin = time.process_time()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for ids in batches[1:]:
            step(ids)
    taken = (time.process_time() - begin) / (given.steps - 1)
    times: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        times[kind_of(event.key)] += event.self_cpu_time_total
    total = sum(times.values())
    tokens = given.batch * given.length
    bound = operations(student, teacher, tokens) / best_rate(torch.bfloat16 if half else torch.float32)
    print(f"a step of {tokens} tokens: {taken:.2f} s of processor time; its products at best {bound:.2f} s: ", end="")
    print(f"{bound / taken:.0%} of the bound\n\n| kind | share of the step |\n|---|---|")
    shares = sorted(times.items(), key=lambda item: -item[1])
    for kind, microseconds in shares:
        print(f"| {kind} | {microseconds / total:.1%} |")
    row = {
        "batch": given.batch,
        "length": given.length,
        "trains": given.trains,
        "precision": given.precision,
        "threads": given.threads,
    }
    row |= {"cpu_seconds": round(taken, 3), "bound_seconds": round(bound, 3), "of_bound": round(bound / taken, 3)}
    row |= {"shares": "; ".join(f"{kind} {value / total:.3f}" for kind, value in shares)}
    append_row("distill_profile", row | {"versions": versions(["torch", "transformers"])})


if __name__ == "__main__":
    main()
