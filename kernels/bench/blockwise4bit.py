"""NF4 against bitsandbytes on the CPU: `python kernels/bench/blockwise4bit.py [--weights 33554432] [--rounds 7]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import bitsandbytes.functional as bnb
import compress_kernels as ck
import torch
from record import alternate, record


def main() -> None:
    """Quantize with double quantization, and dequantize, in G weights/s, block 64."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=int, default=2**25)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    rows: list[tuple[str, str, float, str, float | None]] = []
    for kind in ("nf4", "fp4"):
        for dtype in (torch.bfloat16, torch.float32):
            w = torch.randn(options.weights // 1024, 1024).mul(0.02).to(dtype)
            shape, count = tuple(w.shape), w.numel()
            packed, state = bnb.quantize_4bit(w, quant_type=kind, compress_statistics=True)
            ours = ck.quantize_4bit(w, kind=kind)
            assert torch.equal(ours.codes, packed.view(-1))
            assert torch.equal(ck.dequantize_4bit(ours, shape, dtype), bnb.dequantize_4bit(packed, state))

            def quantize_bnb(w: torch.Tensor = w, kind: str = kind) -> object:
                return bnb.quantize_4bit(w, quant_type=kind, compress_statistics=True)

            def quantize_ours(w: torch.Tensor = w, kind: str = kind) -> object:
                return ck.quantize_4bit(w, kind=kind)

            def dequantize_bnb(packed: torch.Tensor = packed, state: object = state) -> object:
                return bnb.dequantize_4bit(packed, state)

            def dequantize_ours(
                q: ck.Blockwise4bit = ours, shape: tuple[int, ...] = shape, dtype: torch.dtype = dtype
            ) -> object:
                return ck.dequantize_4bit(q, shape, dtype)

            jobs: dict[str, dict[str, Callable[[], object]]] = {
                "quantize": {"bitsandbytes": quantize_bnb, "compress_kernels": quantize_ours},
                "dequantize": {"bitsandbytes": dequantize_bnb, "compress_kernels": dequantize_ours},
            }
            for job, forms in jobs.items():
                for form, seconds in alternate(forms, options.rounds).items():
                    case = f"{job} {kind} {str(dtype).removeprefix('torch.')} {count // 2**20}M"
                    rows.append((case, form, count / seconds / 1e9, "G weights/s", None))
    record("blockwise4bit", rows)


if __name__ == "__main__":
    main()
