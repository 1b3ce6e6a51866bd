"""A weight that trains through its grid: `python kernels/bench/grid_weight.py [--weights 16777216] [--rounds 7]`.

Rounding and the gradient back, against the same in torch operations (the reference), which is what training through a
grid costs without a kernel.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import compress_kernels as ck
import torch
from compress_kernels import reference
from record import alternate, record

TABLES = {"nf4": (ck.NF4_CODE.sort().values, 64), "int4": (torch.arange(-8, 8, dtype=torch.float32), 32)}


def main() -> None:
    """G weights/s forward (fp32 latents to a bf16 weight) and backward."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=2**24)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    rows: list[tuple[str, str, float, str, float | None]] = []
    for name, (table, block) in TABLES.items():
        latent = torch.randn(options.weights // 1024, 1024) * float(table[-1]) / 3
        weight = ck.LatentWeight(latent, torch.rand(len(latent), 1024 // block), None, table)
        gradient = torch.randn_like(latent).bfloat16()
        _, codes = ck.round_weight(weight, torch.bfloat16)

        def forward(module: Any, weight: ck.LatentWeight = weight) -> object:
            return module.round_weight(weight, torch.bfloat16)

        def backward(
            module: Any,
            weight: ck.LatentWeight = weight,
            codes: torch.Tensor = codes,
            gradient: torch.Tensor = gradient,
        ) -> object:
            return module.round_weight_backward(weight, codes, gradient)

        for job, call in (("forward", forward), ("backward", backward)):
            forms: dict[str, Callable[[], object]] = {
                "torch": partial(call, reference),
                "compress_kernels": partial(call, ck),
            }
            for form, seconds in alternate(forms, options.rounds).items():
                rows.append((f"{job} {name}", form, options.weights / seconds / 1e9, "G weights/s", None))
    record("grid_weight", rows)


if __name__ == "__main__":
    main()
