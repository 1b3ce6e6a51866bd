"""A checkpoint much larger than the memory allowed: how fast it goes to NF4, and what holds it up.

    python experiments/large_checkpoint.py generate DIR [--shape 7b|1b|tiny]
    python experiments/large_checkpoint.py quantize DIR --work DIR [--grid nf4] [--repeat]

`generate` writes a bf16 Llama of random weights with config and tokenizer, tensor by tensor. `quantize` runs the
data-free stage on it as the pipeline does, with the store around it, and leaves out what needs the whole model
(measuring perplexity). Killed, the same command goes on with the tensor it stopped at. Reading starts from the disk,
not from the system's cache. Bandwidths are measured just before, in the same process:

    disk     time that reading the source and writing the result take at the measured rates, one after the other
    memory   time that source and result take at the measured rate of a copy, each byte moved once

A fraction is that time by the time taken. A row goes to experiments/results/large_checkpoint.csv.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from tables import append_row, versions
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from compress.checkpoint import Checkpoint, weight_files, write_config
from compress.data import Corpus
from compress.memory import PeakMemory
from compress.progress import Terminal
from compress.quant.stage import NF4, OnGrid
from compress.stage import DENSE, Context
from compress.store import Store, content_key
from compress.writer import TensorWriter

GIB = 1 << 30
BLOCK = 1 << 24
POOL = 1 << 24
SHAPES: dict[str, dict[str, int]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
    "tiny": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
}
VOCABULARY = 32000


def shapes(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of an untied Llama."""
    width, inner = config.hidden_size, config.intermediate_size
    yield "model.embed_tokens.weight", (config.vocab_size, width)
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        for name in "qkvo":
            yield f"{prefix}.self_attn.{name}_proj.weight", (width, width)
        for name, shape in {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}.items():
            yield f"{prefix}.mlp.{name}_proj.weight", shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{name}.weight", (width,)
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (config.vocab_size, width)


def generate(folder: Path, shape: str) -> None:
    """Write the checkpoint; weights are stretches of one pool of normal numbers, each tensor from another place."""
    folder.mkdir(parents=True)
    config = LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=False, dtype="bfloat16", **SHAPES[shape])
    config.architectures = ["LlamaForCausalLM"]
    generator = torch.Generator().manual_seed(0)
    pool = torch.empty(POOL, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
    listed = dict(shapes(config))
    writer = TensorWriter(folder, listed)
    for number, (name, size) in enumerate(listed.items()):
        count = torch.Size(size).numel()
        begin = 7919 * 64 * number % POOL
        turned = torch.cat([pool[begin:], pool[:begin]])
        writer.add(name, turned.repeat(-(-count // POOL))[:count].view(size))
    writer.close()
    write_config(folder, config)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(folder)


def fastest(form: Callable[[], float], rounds: int = 3) -> float:
    """Best rate of several."""
    return max(form() for _ in range(rounds))


def memory_rate() -> float:
    """Bytes per second of a copy on all threads, read and written ones counted."""
    source, target = torch.ones(GIB // 8), torch.empty(GIB // 8)

    def copy() -> float:
        begin = time.perf_counter()
        target.copy_(source)
        return 2 * source.nbytes / (time.perf_counter() - begin)

    return fastest(copy, 5)


def forget(file: Path) -> None:
    """Drop a file from the system's cache."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_rate(file: Path) -> float:
    """Bytes per second of reading (the first 2 GiB of) a file from the disk."""
    forget(file)
    buffer, count = bytearray(BLOCK), 0
    begin = time.perf_counter()
    with file.open("rb", buffering=0) as opened:
        while count < 2 * GIB and (read := opened.readinto(buffer)):
            count += read
    return count / (time.perf_counter() - begin)


def write_rate(folder: Path) -> float:
    """Bytes per second of writing 1 GiB to the disk."""
    file = folder / "probe.bin"
    block = os.urandom(BLOCK)
    begin = time.perf_counter()
    with file.open("wb", buffering=0) as opened:
        for _ in range(GIB // BLOCK):
            opened.write(block)
        os.fsync(opened.fileno())
    seconds = time.perf_counter() - begin
    file.unlink()
    return GIB / seconds


def quantize(source: Path, work: Path, grid: str) -> dict[str, Any]:
    """Run the stage with the store around it; seconds of both, and the peak of anonymous memory."""
    store = Store(work / "store")
    stage = NF4() if grid == "nf4" else OnGrid(grid=grid)
    checkpoint = Checkpoint(source, frozenset({DENSE}), source.name)
    key = content_key({"source": str(source.resolve()), "grid": grid})
    resumed = any(store.scratch(key).iterdir())
    begin = time.monotonic()
    with PeakMemory() as memory, store.locked(key), store.writing(key) as folder:
        context = Context(
            folder=folder,
            scratch=store.scratch(key),
            original=checkpoint,
            dense=None,
            corpus=Corpus("none", (), (), (), ""),
            own_text=lambda: torch.empty(0, 0),
            fabric=Fabric(accelerator="cpu", devices=1),
            progress=Terminal(),
        )
        result, metrics = stage.run(checkpoint, context)
        done = time.monotonic()
        written = result.bytes()
        store.commit(key, folder, {"metrics": metrics})
    return {
        "stage_seconds": done - begin,
        "store_seconds": time.monotonic() - done,
        "anonymous_peak_bytes": memory.peak_bytes,
        "written": written,
        "resumed": resumed,
    }


def measure(source: Path, work: Path, grid: str) -> None:
    """Bandwidths, then the stage, then the row."""
    work.mkdir(parents=True, exist_ok=True)
    files = weight_files(source)
    memory = memory_rate()
    write, read = fastest(lambda: write_rate(work), 2), fastest(lambda: read_rate(files[0]), 2)
    for file in files:
        forget(file)
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    found = quantize(source, work, grid)
    size, seconds = sum(file.stat().st_size for file in files), found["stage_seconds"]
    whole = seconds + found["store_seconds"]
    weights = size // 2
    disk = size / read + found["written"] / write
    row = {
        "grid": grid,
        "weights": weights,
        "source_bytes": size,
        "result_bytes": found["written"],
        "stage_seconds": round(seconds, 2),
        "store_seconds": round(found["store_seconds"], 2),
        "weights_per_second": round(weights / seconds),
        "anonymous_peak_mib": round(found["anonymous_peak_bytes"] / 2**20),
        "disk_read_bytes_per_second": round(read),
        "disk_write_bytes_per_second": round(write),
        "memory_bytes_per_second": round(memory),
        "fraction_of_disk": round(disk / seconds, 3),
        "fraction_of_disk_with_store": round(disk / whole, 3),
        "fraction_of_memory": round((size + found["written"]) / memory / seconds, 3),
        "load": round(os.getloadavg()[0], 1),
        "threads": torch.get_num_threads(),
        "versions": versions(("torch", "safetensors")),
    }
    if found["resumed"]:
        print("went on where an earlier run was killed: no rate, no row")
        return
    append_row("large_checkpoint", row)
    for name, value in row.items():
        print(f"{name:28} {value}")


def main() -> None:
    """Generate or quantize."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    generating = commands.add_parser("generate")
    generating.add_argument("folder", type=Path)
    generating.add_argument("--shape", choices=list(SHAPES), default="7b")
    quantizing = commands.add_parser("quantize")
    quantizing.add_argument("folder", type=Path)
    quantizing.add_argument("--work", type=Path, required=True, help="for the store and the result")
    quantizing.add_argument("--grid", default="nf4")
    quantizing.add_argument("--repeat", action="store_true", help="throw an earlier result away first")
    options = parser.parse_args()
    if options.command == "generate":
        generate(options.folder, options.shape)
        return
    if options.repeat:
        shutil.rmtree(options.work, ignore_errors=True)
    measure(options.folder, options.work, options.grid)


if __name__ == "__main__":
    main()
