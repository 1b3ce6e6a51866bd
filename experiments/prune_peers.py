"""Our pruned-and-healed model against others of the same size, healed on the same tokens.

    python experiments/prune_peers.py --train FILE --heldout FILE --measured FILE --work DIR [--peers DIR]
        [--keep 0.85] [--tokens 200000] [--methods random torch_pruning shortgpt_lora] [--rates 1e-4 5e-4]

Ours is `+pipeline=prune_heal`. The others (`prune_peer.py`) get its number of parameters and --tokens of the same text,
where ours has the original's own text among its tokens; Torch-Pruning runs in its own environment, DIR/torch-pruning
(`python -m venv`, then `pip install torch-pruning transformers`). With --rates every peer runs once with each, else
once with the rate that `prune_peer.py` has for it. All are measured alike on both texts, beside the KL to the original.

A row for each goes to experiments/results/prune_peers.csv.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tables import append_row, versions

import compress
from compress.data import TextFiles
from compress.data.windows import joined_windows, training_windows
from compress.evaluate.quality import Reference, measure, reference
from compress.runtime.loading import load_model
from compress.source import EmbeddedModel

HERE = Path(__file__).parent
METHODS = ("random", "torch_pruning", "shortgpt_lora")
LENGTH = 256


def ours(given: argparse.Namespace) -> Path:
    """The pipeline's dense checkpoint."""
    report = compress.run(
        [
            "+pipeline=prune_heal",
            "model=hf",
            f"model.path={given.model}",
            "data=text",
            f"data.path={given.train}",
            f"data.heldout_path={given.heldout}",
            f"stages.prune.keep={given.keep}",
            f"train.tokens={given.tokens}",
            f"train.length={LENGTH}",
            "evaluate.tokens=2048",
            "evaluate.prompts=[]",
            "evaluate.speed=false",
            f"output={given.work / 'ours'}",
        ]
    )
    return Path(report["artifacts"][0]["path"])


def peer(method: str, rate: float | None, shape: Path, size: int, given: argparse.Namespace) -> Path:
    """A peer's checkpoint."""
    own = given.peers / "torch-pruning" / "bin" / "python" if given.peers else Path("none")
    python = str(own) if method == "torch_pruning" else sys.executable
    out = given.work / (method if rate is None else f"{method}_{rate:g}")
    shutil.rmtree(out, ignore_errors=True)
    command = [python, str(HERE / "prune_peer.py"), method, "--model", str(given.model), "--out", str(out)]
    command += ["--windows", str(given.work / "windows.safetensors"), "--shape", str(shape), "--parameters", str(size)]
    command += [] if rate is None else ["--rate", str(rate)]
    subprocess.run(command, check=True)
    return out


def measured(folder: Path, texts: dict[str, Reference]) -> dict[str, float]:
    """Perplexity ratio and KL on every text."""
    model = load_model(folder)
    found: dict[str, float] = {}
    for name, original in texts.items():
        quality = measure(model, original, lambda _: None)
        found |= {f"{name}_ppl": quality.ppl, f"{name}_kl": quality.kl_to_teacher}
    return found


def main() -> None:
    """Ours first: it sets the size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="text, or .jsonl with a field text")
    parser.add_argument("--heldout", type=Path, required=True, help="of the same kind")
    parser.add_argument("--measured", type=Path, required=True, help="of another kind")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--model", type=Path, help="the embedded one by default")
    parser.add_argument("--keep", type=float, default=0.85)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rates", nargs="*", type=float, default=[])
    parser.add_argument("--windows", type=int, default=16, help="of 1,024 tokens, to measure on")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    given.model = given.model or EmbeddedModel().resolve().folder
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given.model)
    corpus = TextFiles(str(given.train), heldout_path=str(given.heldout)).load()
    drawn = training_windows(corpus.train, tokenizer, length=LENGTH, tokens=given.tokens, seed=0)
    save_file({"ids": drawn.ids, "lengths": drawn.lengths}, given.work / "windows.safetensors")
    dense = load_model(given.model)
    texts = {}
    for name, documents in (("heldout", corpus.heldout), ("other", (given.measured.read_text(),))):
        windows = joined_windows(documents, tokenizer, length=1024, tokens=1024 * given.windows)
        texts[name] = reference(dense, windows, lambda _: None)
    base = {name: measure(dense, original, lambda _: None).ppl for name, original in texts.items()}
    del dense

    def tell(method: str, folder: Path, facts: dict[str, Any]) -> None:
        found = measured(folder, texts)
        ratios = {f"{name}_ratio": found[f"{name}_ppl"] / ppl for name, ppl in base.items()}
        row = {"method": method, "tokens": given.tokens, "keep": given.keep, **facts, **found, **ratios}
        append_row("prune_peers", row)
        told = "  ".join(f"{name} {row[f'{name}_ratio']:.3f}x KL {row[f'{name}_kl']:.3f}" for name in texts)
        print(f"{method:20} {facts['parameters']:>12,} parameters  {told}", flush=True)

    shape = ours(given)
    size = sum(p.numel() for p in load_model(shape).parameters())
    tell("ours", shape, {"parameters": size, "rate": "", "versions": versions(("torch", "transformers"))})
    for method in given.methods:
        for rate in given.rates or [None]:
            folder = peer(method, rate, shape, size, given)
            facts = json.loads((folder / "measured.json").read_text())
            tell(method, folder, {name: facts[name] for name in ("parameters", "rate", "versions")})


if __name__ == "__main__":
    main()
