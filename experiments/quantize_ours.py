"""Quantizes one model by one of our pipelines: the counterpart of `quantize_peer.py`, with the same arguments.

    python quantize_ours.py PIPELINE --model DIR --windows FILE --out DIR

PIPELINE is a preset with a single stage, such as nf4_gptq. The stage gets the same calibration tokens as the peers and
nothing else; FILE must have the text they were cut from beside it (`source.json` says where it lies).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from lightning.fabric import Fabric
from safetensors.torch import load_file
from tables import versions

from compress.calibrate import calibration_windows
from compress.checkpoint import Checkpoint
from compress.command import compose
from compress.config import build
from compress.data import Corpus
from compress.data.readers import read_documents
from compress.progress import Terminal
from compress.stage import DENSE, Context


def quantize(pipeline: str, model: Path, calibration: Path, out: Path) -> float:
    """Run the stage; seconds from the model's folder to the written checkpoint."""
    windows = load_file(calibration)["windows"]
    documents = tuple(read_documents(Path(json.loads((calibration.parent / "source.json").read_text())), "text"))
    amount = {"tokens": windows.numel(), "length": windows.shape[1]}
    overrides = [f"stages.quant.calibration.{name}={value}" for name, value in amount.items()]
    stage = build(compose([f"+pipeline={pipeline}", *overrides])).stages["quant"]
    checkpoint = Checkpoint(model, frozenset({DENSE}), model.name)
    out.mkdir(parents=True)
    context = Context(
        folder=out,
        scratch=out.with_name(f"{out.name}.scratch"),
        original=checkpoint,
        dense=None,
        corpus=Corpus("calibration", (), documents, (), ""),
        own_text=lambda: torch.empty(0, 0, dtype=torch.long),
        fabric=Fabric(accelerator="cpu", devices=1),
        progress=Terminal(),
    )
    if not torch.equal(calibration_windows(context, **amount), windows):
        raise SystemExit("the calibration tokens are not those that the peers get")
    begin = time.perf_counter()
    stage.run(checkpoint, context)
    return time.perf_counter() - begin


def main() -> None:
    """Quantize, and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--windows", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    seconds = quantize(options.pipeline, options.model, options.windows, options.out)
    found = {"seconds": seconds, "activations": None, "versions": versions(("compress", "torch"))}
    (options.out / "measured.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
