"""Our quantizers against bitsandbytes, torchao, llm-compressor, HQQ, AutoRound and GPTQModel, on one model.

    python experiments/quantize_peers.py --calibration FILE --measured FILE --work DIR [--peers DIR] [--model DIR]
        [--methods NAME ...] [--windows 128] [--length 512] [--tokens 32768] [--window 1024]

Every quantizer runs in a process of its own, peers in their own environments (--peers DIR: DIR/bitsandbytes,
DIR/torchao, DIR/llmcompressor, DIR/hqq, DIR/auto-round, DIR/gptqmodel, made with `python -m venv` and
`pip install NAME transformers accelerate`; one that is missing is left out, and said to be). All get the same
calibration tokens: windows of different documents of the calibration file, drawn by a fixed seed. Ours and theirs take
turns. One evaluator measures all results: perplexity of the first --tokens tokens of the measured text in windows of
--window, and KL to the original. A quantizer's peak is its process' anonymous memory, sampled from outside.

A row for each goes to experiments/results/quantize_peers.csv, and a table to standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tables import append_row

from compress.arch.linears import linear_paths
from compress.checkpoint import Checkpoint
from compress.data.readers import read_documents
from compress.data.windows import joined_windows, spread_windows
from compress.evaluate.quality import Reference, measure, measure_logits, reference
from compress.grids.int8 import fake_quantize
from compress.runtime.loading import load_model
from compress.source import EmbeddedModel

HERE = Path(__file__).parent
OURS = ("nf4", "nf4_gptq", "int4_gptq", "q4_0_gptq", "int8", "int8_smooth")
PEERS = {
    "bitsandbytes_nf4": "bitsandbytes",
    "torchao_int4": "torchao",
    "llmcompressor_int4": "llmcompressor",
    "hqq_int4": "hqq",
    "torchao_int8_dynamic": "torchao",
    "llmcompressor_w8a8": "llmcompressor",
    "autoround_int4": "auto-round",
    "gptqmodel_int4": "gptqmodel",
}
"""Method -> folder of its environment."""


def write_calibration(file: Path, tokenizer: Any, windows: int, length: int, folder: Path) -> Path:
    """The tokens that calibrate, for all alike: windows from different places of the text, drawn by a fixed seed."""
    documents = list(read_documents(file, "text"))
    tokens = spread_windows(documents, tokenizer, length=length, tokens=windows * length, seed=0)
    if len(tokens) < windows:
        raise SystemExit(f"{file} gave {len(tokens)} windows of {length} tokens, not {windows}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "source.json").write_text(json.dumps(str(file.resolve())))
    save_file({"windows": tokens.contiguous()}, folder / "windows.safetensors")
    return folder / "windows.safetensors"


def run(command: list[str], log: Path) -> tuple[int, float, int]:
    """Exit status, wall seconds and peak anonymous bytes of a process."""
    begin, peak = time.perf_counter(), 0
    # a library that asks a hub for anything must not wait for it
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("w") as opened:
        process = subprocess.Popen(command, stdout=opened, stderr=subprocess.STDOUT, env=environment, cwd=log.parent)
        stop = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not stop.wait(0.05):
                peak = max(peak, anonymous_bytes(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        status = process.wait()
        stop.set()
        watcher.join()
    return status, time.perf_counter() - begin, peak


def anonymous_bytes(process: int) -> int:
    """Of a running process; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


@torch.no_grad()
def quality(folder: Path, activations: str | None, original: Reference) -> dict[str, Any]:
    """Perplexity, KL and agreement of a quantized checkpoint."""
    model = load_model(folder)
    if activations == "int8_token":
        for path in linear_paths(model.config):
            layer = model.get_submodule(path)
            layer.register_forward_pre_hook(lambda _, inputs: (fake_quantize(inputs[0]), *inputs[1:]))
    # the whole model is called: what is stored in compressed-tensors' format decodes itself only then
    return measure_logits(lambda ids: model(ids[None]).logits[0], original, lambda _: None).as_dict()


def in_turns(methods: list[str]) -> list[str]:
    """Ours and theirs alternating."""
    ours = [method for method in methods if method in OURS]
    theirs = [method for method in methods if method in PEERS]
    return [method for pair in zip_longest(ours, theirs) for method in pair if method]


def table(rows: list[dict[str, Any]], ppl: float) -> str:
    """Markdown."""
    lines = [
        f"| method | perplexity (original {ppl:.2f}) | KL to the original | top-1 | seconds | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["error"]:
            lines.append(f"| {row['method']} | does not run: {row['error']} | | | | |")
        else:
            lines.append(
                f"| {row['method']} | {row['ppl']:.2f} ({row['ratio']:.3f}x) | {row['kl']:.4f} | {row['top1']:.3f} "
                f"| {row['seconds']:.0f} | {row['peak_mib']} |"
            )
    return "\n".join(lines)


def options() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--measured", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--model", type=Path, help="the embedded one by default")
    parser.add_argument("--methods", nargs="+", choices=[*OURS, *PEERS], default=[*OURS, *PEERS])
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    for name in (
        "calibration",
        "measured",
        "work",
        "peers",
        "model",
    ):  # quantizers run in --work, where some leave logs
        path = getattr(given, name)
        setattr(given, name, path and path.absolute())
    return given


def row_of(method: str, given: argparse.Namespace, model: Path, windows: Path, original: Reference) -> dict[str, Any]:
    """Quantize and measure; what went wrong, if it did, is in `error`."""
    row: dict[str, Any] = {"method": method, "model": model.name, "threads": given.threads}
    figures = ("ppl", "kl", "top1", "seconds", "wall_seconds", "peak_mib", "versions")
    row |= dict.fromkeys(figures, "") | {"error": ""}
    python = sys.executable
    if method in PEERS:
        python = str(given.peers / PEERS[method] / "bin" / "python") if given.peers else ""
        if not Path(python).is_file():
            return row | {"error": f"no environment {PEERS[method]} (--peers)"}
    out, log = given.work / method, given.work / f"{method}.log"
    shutil.rmtree(out, ignore_errors=True)
    script = HERE / ("quantize_peer.py" if method in PEERS else "quantize_ours.py")
    command = [python, str(script), method, "--model", str(model), "--windows", str(windows), "--out", str(out)]
    status, wall, peak = run([*command, "--threads", str(given.threads)], log)
    if status != 0:
        last = [line.strip() for line in log.read_text().splitlines() if line.strip()][-1:]
        return row | {"error": (last or [f"exit status {status}"])[0][:300]}
    found = json.loads((out / "measured.json").read_text())
    measured = quality(out, found["activations"], original)
    row |= {"ppl": measured["ppl"], "kl": measured["kl_to_teacher"], "top1": measured["top1_agreement"]}
    row |= {"seconds": found["seconds"], "wall_seconds": wall, "peak_mib": round(peak / 2**20)}
    return row | {"versions": found["versions"]}


def main() -> None:
    """Everything, in turns."""
    given = options()
    given.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(given.threads)
    model = given.model or EmbeddedModel().resolve().folder
    checkpoint = Checkpoint(model, frozenset())
    tokenizer = checkpoint.tokenizer()
    amount = (given.windows, given.length)
    calibration = write_calibration(given.calibration, tokenizer, *amount, given.work / "calibration")
    text = given.measured.read_text(encoding="utf-8")
    dense = load_model(model)
    windows = joined_windows([text], tokenizer, length=given.window, tokens=given.tokens)
    original = reference(dense, windows, lambda _: None)
    baseline = measure(dense, original, lambda _: None)
    del dense
    rows = []
    for method in in_turns(given.methods):
        row = row_of(method, given, model, calibration, original)
        row |= {"ratio": "" if row["error"] else row["ppl"] / baseline.ppl, "original_ppl": baseline.ppl}
        row |= {"scored_tokens": baseline.scored_tokens, "window": given.window}
        row |= {"calibration": f"{given.windows} x {given.length}"}
        append_row("quantize_peers", row)
        rows.append(row)
        print(table([row], baseline.ppl).splitlines()[-1], flush=True)
    print(table(rows, baseline.ppl))


if __name__ == "__main__":
    main()
