"""How fast the artifacts read and write through `generate`, on our kernels and as bitsandbytes runs them.

python experiments/generate_speed.py dense=FOLDER int8=FOLDER nf4=FOLDER
                                     [--prefill 512] [--decode 64] [--rounds 5] [--cpu-time]

The forms take turns in one process; medians. Prefill is the time to the first token, decode that of each one after it.
With --cpu-time one thread computes and its processor time counts, for a machine that others use too. Rows are appended
to kernels/bench/results.csv.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "kernels" / "bench"))
from record import record

from compress.runtime.loading import load_model


def written(model: Any, prompt: torch.Tensor, tokens: int, clock: Callable[[], float]) -> float:
    """Seconds to read the prompt and write `tokens`."""
    begin = clock()
    model.generate(prompt, attention_mask=torch.ones_like(prompt), min_new_tokens=tokens, max_new_tokens=tokens)
    return clock() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="name=FOLDER; a quantized one is measured as bitsandbytes too")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    if options.cpu_time:
        torch.set_num_threads(1)
    clock = time.process_time if options.cpu_time else time.perf_counter
    logging.disable(logging.WARNING)
    models = {}
    for name, _, folder in (given.partition("=") for given in options.folders):
        models[name] = load_model(Path(folder), dtype=torch.bfloat16)
        if getattr(models[name].config, "quantization_config", None) is not None:
            models[f"{name}, bitsandbytes"] = load_model(Path(folder), dtype=torch.bfloat16, plain=True)
    for model in models.values():
        model.generation_config.do_sample = False
    vocabulary = next(iter(models.values())).config.vocab_size
    prompt = torch.randint(0, vocabulary, (1, options.prefill), generator=torch.Generator().manual_seed(0))
    reading: dict[str, list[float]] = {name: [] for name in models}
    writing: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(options.rounds + 1):
        for name, model in models.items():
            first = written(model, prompt, 1, clock)
            rest = written(model, prompt, 1 + options.decode, clock) - first
            if turn:  # the first round warms up
                reading[name].append(options.prefill / first)
                writing[name].append(options.decode / rest)
    unit = "tokens/cpu-s" if options.cpu_time else "tokens/s"
    rows: list[tuple[str, str, float, str, float | None]] = []
    for name in models:
        rows.append((f"prefill {options.prefill}", name, median(reading[name]), unit, None))
        rows.append((f"decode {options.decode}", name, median(writing[name]), unit, None))
    record("generate", rows)


if __name__ == "__main__":
    main()
