"""What importance criteria and compensation are worth before any training, one kind of group at a time.

    python experiments/prune_criteria.py --calibration FILE --measured FILE [--model DIR] [--kinds mlp ...]

Every criterion scores the same model on the same tokens; each kind is cut alone, once per criterion, and measured as it
is and after compensation. Rows go to experiments/results/prune_criteria.csv.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from tables import append_row, versions

from compress.arch import adapter_for
from compress.data import TextFiles
from compress.data.windows import CALIBRATION_WINDOW, joined_windows
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


def scores_of(model: Any, windows: torch.Tensor, criterion: str, kind: str, keep: Any, seed: int) -> Scores:
    """By one criterion; of layers if that is what is cut."""
    layers = kind == "layers"
    criteria = Criteria(
        Importance.random if layers else Importance(criterion),
        LayerImportance(criterion) if layers else LayerImportance.random,
        seed=seed,
    )
    return score(model, adapter_for(model.config), windows, keep, criteria, Terminal()).scores


def main() -> None:
    """Print a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=Path, required=True, help="text the groups are scored on")
    parser.add_argument("--measured", type=Path, required=True, help="text perplexity is measured on")
    parser.add_argument("--model", type=Path, help="folder of a dense model; the embedded one by default")
    parser.add_argument("--kinds", nargs="*", default=list(CUTS), choices=list(CUTS))
    parser.add_argument("--criteria", nargs="*", help="by default all")
    parser.add_argument("--tokens", type=int, default=16384, help="of calibration")
    parser.add_argument("--windows", type=int, default=8, help="of 1,024 tokens, to measure on")
    parser.add_argument("--seed", type=int, default=0, help="of random scores")
    parser.add_argument("--no-compensation", action="store_true")
    parser.add_argument("--ridge", type=float, help="by default the stage's, for so much text")
    parser.add_argument("--absorb", type=float, default=Compensate().absorb)
    options = parser.parse_args()
    options.ridge = options.ridge or Compensate().ridge_for(options.tokens)
    folder = options.model or EmbeddedModel().resolve().folder
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_model(folder)
    calibration = TextFiles(str(options.calibration)).load().calibration
    windows = joined_windows(calibration, tokenizer, length=CALIBRATION_WINDOW, tokens=options.tokens)
    measured = joined_windows([options.measured.read_text()], tokenizer, length=1024, tokens=1024 * options.windows)
    original = reference(model, measured, lambda _: None)
    ppl = measure(model, original, lambda _: None).ppl
    print(f"original {ppl:.2f}", flush=True)
    for kind in options.kinds:
        possible = [c.value for c in (LayerImportance if kind == "layers" else Importance)]
        for criterion in [c for c in possible if not options.criteria or c in options.criteria]:
            row = one(model, windows, original, kind, criterion, options)
            lost = math.log(row["ppl"] / ppl)
            won = 1 - math.log(row["ppl_compensated"] / ppl) / lost if row["ppl_compensated"] else None
            found = {"kind": kind, "criterion": criterion, "original": round(ppl, 3), **row, "won_back": won}
            settings = {name: getattr(options, name) for name in ("tokens", "windows", "ridge", "absorb")}
            append_row("prune_criteria", found | settings | {"versions": versions(("torch", "transformers"))})
            print(
                "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()), flush=True
            )


def one(
    model: Any, windows: torch.Tensor, original: Reference, kind: str, criterion: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Perplexity and KL of one cut, with and without compensation."""
    architecture = adapter_for(model.config)
    shape = architecture.shape(model.config)
    whole = architecture.non_embedding_parameters(model.config)
    target = PruneTarget(keep=None, **CUTS[kind])  # type: ignore[arg-type]
    widths = solve_coarsest(shape, target, lambda w: architecture.non_embedding_parameters(model.config, w))
    plan = select(scores_of(model, windows, criterion, kind, widths, options.seed), shape, widths)
    pruned = pruned_model(model, architecture, plan)
    plain = measure(pruned, original, lambda _: None)
    found: dict[str, float | None] = {"kept": architecture.non_embedding_parameters(model.config, widths) / whole}
    found |= {"ppl": plain.ppl, "kl": plain.kl_to_teacher, "ppl_compensated": None, "kl_compensated": None}
    if not options.no_compensation:
        compensate(pruned, model, plan, windows, Fit(options.ridge, options.absorb), lambda _: None)
        better = measure(pruned, original, lambda _: None)
        found |= {"ppl_compensated": better.ppl, "kl_compensated": better.kl_to_teacher}
    return found


if __name__ == "__main__":
    main()
