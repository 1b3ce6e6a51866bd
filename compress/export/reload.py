"""Run in a fresh process, by path: loads an artifact as its users will and writes the logits it gives.

    python -I reload.py ARTIFACT IDS.safetensors LOGITS.safetensors

Nothing of this project is imported here: what works in this file works for everybody.
"""

import sys
import time

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(artifact: str, ids_file: str, logits_file: str) -> None:
    """Load, compute, write."""
    begin = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(artifact).eval()
    AutoTokenizer.from_pretrained(artifact)
    loaded = time.perf_counter() - begin
    with torch.no_grad():
        logits = model(load_file(ids_file)["ids"]).logits
    save_file({"logits": logits.float().contiguous(), "load_seconds": torch.tensor(loaded)}, logits_file)


if __name__ == "__main__":
    main(*sys.argv[1:4])
