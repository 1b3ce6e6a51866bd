"""What importance criteria and compensation are worth before any training, one kind of group at a time.

    python experiments/prune_criteria.py --calibration FILE --measured FILE ... [--model DIR] [--kinds mlp ...]

Every criterion scores the same model on the same tokens; each kind is cut alone, once per criterion, and measured on
every text as it is and after compensation. `won_back` is the part of the lost log-perplexity that compensation returns.
Rows go to experiments/results/prune_criteria.csv.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tables import append_row, versions

from compress.arch import Widths, adapter_for
from compress.data import TextFiles
from compress.data.readers import read_documents
from compress.data.windows import CALIBRATION_WINDOW, joined_windows, spread_windows
from compress.evaluate.quality import Reference, measure, reference
from compress.progress import Terminal
from compress.prune.compensate import Fit, compensate
from compress.prune.criteria import Importance, LayerImportance
from compress.prune.plan import Scores, select
from compress.prune.scoring import Criteria, score
from compress.prune.stage import Compensate
from compress.prune.surgery import pruned_model
from compress.prune.target import PruneTarget, solve_coarsest
from compress.runtime.loading import load_model
from compress.source import EmbeddedModel

CUTS: dict[str, dict[str, float]] = {
    "mlp": {"mlp": 0.8},
    "heads": {"heads": 0.67},
    "query_heads": {"query_heads": 0.67},
    "hidden": {"hidden": 0.89},
    "layers": {"layers": 0.9},
}
"""Kind of group -> the fraction of it that stays."""


class Scorer:
    """Scores by one criterion after another; one pass for all kinds of group a criterion knows."""

    def __init__(self, model: Any, windows: torch.Tensor, seed: int) -> None:
        self.model = model
        self.windows = windows
        self.seed = seed
        self.known: dict[str, Scores] = {}

    def __call__(self, criterion: str, kind: str, widths: Widths) -> Scores:
        """Of everything `kind` needs; of layers if they are what is cut."""
        layers = kind == "layers"
        name = f"layers by {criterion}" if layers else criterion
        if name not in self.known:
            by = Criteria(
                Importance.random if layers else Importance(criterion),
                LayerImportance(criterion) if layers else LayerImportance.random,
                seed=self.seed,
            )
            architecture = adapter_for(self.model.config)
            self.known[name] = score(self.model, architecture, self.windows, widths, by, Terminal()).scores
        return self.known[name]


@dataclass(frozen=True)
class Text:
    """One that is measured on: its name, and what the original says of it."""

    name: str
    original: Reference
    ppl: float


def main() -> None:
    """Print a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=Path, required=True, help="text the groups are scored on")
    parser.add_argument("--measured", type=Path, nargs="+", required=True, help="texts perplexity is measured on")
    parser.add_argument("--model", type=Path, help="folder of a dense model; the embedded one by default")
    parser.add_argument("--kinds", nargs="*", default=list(CUTS), choices=list(CUTS))
    parser.add_argument("--criteria", nargs="*", help="by default all")
    parser.add_argument("--compensate", nargs="*", help="criteria to measure after compensation too; by default all")
    parser.add_argument("--tokens", type=int, default=16384, help="of calibration")
    parser.add_argument("--windows", type=int, default=8, help="of 1,024 tokens, to measure on")
    parser.add_argument("--seed", type=int, default=0, help="of random scores")
    parser.add_argument("--ridge", type=float, help="by default the stage's, for so much text")
    parser.add_argument("--absorb", type=float, default=Compensate().absorb)
    options = parser.parse_args()
    options.ridge = options.ridge or Compensate().ridge_for(options.tokens)
    folder = options.model or EmbeddedModel().resolve().folder
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_model(folder)
    calibration = TextFiles(str(options.calibration)).load().calibration
    windows = spread_windows(calibration, tokenizer, length=CALIBRATION_WINDOW, tokens=options.tokens, seed=0)
    texts = []
    for file in options.measured:
        documents = read_documents(file, "text")
        held = joined_windows(documents, tokenizer, length=1024, tokens=1024 * options.windows)
        original = reference(model, held, lambda _: None)
        texts.append(Text(file.stem, original, measure(model, original, lambda _: None).ppl))
        print(f"original on {file.stem}: {texts[-1].ppl:.2f}", flush=True)
    scorer = Scorer(model, windows, options.seed)
    for kind in options.kinds:
        possible = [c.value for c in (LayerImportance if kind == "layers" else Importance)]
        for criterion in [c for c in possible if not options.criteria or c in options.criteria]:
            for row in cut(model, windows, texts, kind, criterion, scorer, options):
                settings = {name: getattr(options, name) for name in ("tokens", "windows", "ridge", "absorb")}
                rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
                append_row("prune_criteria", rounded | settings | {"versions": versions(("torch", "transformers"))})
                told = (f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
                print("  ".join(told), flush=True)


def cut(
    model: Any,
    windows: torch.Tensor,
    texts: list[Text],
    kind: str,
    criterion: str,
    scorer: Scorer,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Ratio of perplexities and KL of one cut, with and without compensation: a row for each text."""
    architecture = adapter_for(model.config)
    shape = architecture.shape(model.config)
    whole = architecture.non_embedding_parameters(model.config)
    target = PruneTarget(keep=None, **CUTS[kind])  # type: ignore[arg-type]
    widths = solve_coarsest(shape, target, lambda w: architecture.non_embedding_parameters(model.config, w))
    plan = select(scorer(criterion, kind, widths), shape, widths)
    pruned = pruned_model(model, architecture, plan)
    kept = architecture.non_embedding_parameters(model.config, widths) / whole
    plain = [measure(pruned, text.original, lambda _: None) for text in texts]
    better: list[Any] = [None] * len(texts)
    if options.compensate is None or criterion in options.compensate:
        compensate(pruned, model, plan, windows, Fit(options.ridge, options.absorb), lambda _: None)
        better = [measure(pruned, text.original, lambda _: None) for text in texts]
    rows = []
    for text, before, after in zip(texts, plain, better, strict=True):
        row = {"text": text.name, "kind": kind, "criterion": criterion, "kept": kept, "original": text.ppl}
        row |= {"ratio": before.ppl / text.ppl, "kl": before.kl_to_teacher}
        row |= {"ratio_compensated": None, "kl_compensated": None, "won_back": None}
        if after is not None:
            won = 1 - math.log(after.ppl / text.ppl) / math.log(before.ppl / text.ppl)
            row |= {"ratio_compensated": after.ppl / text.ppl, "kl_compensated": after.kl_to_teacher, "won_back": won}
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
