"""The work of the search: each candidate cut, compensated, healed briefly and judged; the winner handed over."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from compress_kernels import divergence
from torch import Tensor

from compress.arch import adapter_for
from compress.checkpoint import Checkpoint
from compress.data.windows import joined_windows, readable
from compress.errors import UserError
from compress.losses.terms import comparable
from compress.prune.nested import drop_weights, hand_over, run_inside
from compress.prune.search import none_left
from compress.runtime.loading import load_original
from compress.stage import Context, Metrics
from compress.train.module import head_weight, last_hidden

if TYPE_CHECKING:
    from compress.prune.search import PruneSearch

WINDOW = 256


def run_search(checkpoint: Checkpoint, settings: PruneSearch, context: Context) -> tuple[Checkpoint, Metrics]:
    """Judge every candidate; what compensation left of the best one is the result."""
    possible, refused = settings.possible(checkpoint.config)
    fitted, judging = settings.divide(context.corpus.calibration)
    context = replace(context, corpus=replace(context.corpus, calibration=fitted))
    windows = judging_windows(context, judging, settings.judge_tokens)
    rows: list[dict[str, Any]] = []
    best: tuple[Checkpoint, Metrics] | None = None
    for name, (stage, _) in possible.items():
        context.progress.say(f"candidate {name}")
        candidate = Candidate(name, stage, settings, windows)
        try:
            result = run_inside(f"{name}-judged", candidate.judge, checkpoint, context, context.seed)
        except UserError as error:
            # a time per token is known only once it has been measured
            refused[name] = error.problem
            context.progress.say(f"not possible: {error.problem}")
            continue
        beaten = result[0]
        if best is None or comparable(result[1]["row"]["kl_healed"]) < comparable(best[1]["row"]["kl_healed"]):
            best, beaten = result, best[0] if best else None
        if beaten is not None:
            drop_weights(beaten.folder)
        rows.append(result[1]["row"])
    if best is None:
        raise none_left(refused)
    chosen = best[1]["row"]["name"]
    found = {"candidates": rows, "chosen": chosen, "refused": refused, "judged_on": int(windows.numel())}
    return hand_over(best[0], context), best[1]["cut"] | found


@dataclass(frozen=True)
class Candidate:
    """One shape, and what it is judged by."""

    name: str
    stage: Any
    """Prune, with the candidate's share."""
    settings: PruneSearch
    windows: Tensor

    def judge(self, checkpoint: Checkpoint, context: Context) -> tuple[Checkpoint, Metrics]:
        """Cut, compensate, heal briefly, measure; the model is the one before healing.

        What it says of itself, `row`, stays when it is beaten, so that a search that was killed tries nothing twice.
        """
        begin = time.monotonic()
        current, metrics = run_inside("cut", self.stage.run, checkpoint, context, context.seed)
        if self.settings.compensate is not None:
            current, _ = run_inside("compensated", self.settings.compensate.run, current, context, context.seed)
            drop_weights(context.scratch / "cut")
        heal = self.settings.healing(self.settings.brief)
        healed, trained = run_inside("healed", heal.run, current, context, context.seed)
        before, after = (divergence_from(context, model, self.windows) for model in (current, healed))
        row = {
            "name": self.name,
            "share": dict(self.stage.share),
            "widths": metrics["widths"],
            "params": adapter_for(current.config).non_embedding_parameters(current.config),
            "kept_fraction": metrics["kept_fraction"],
            "kl_before": before,
            "kl_healed": after,
            "train_tokens": trained.get("train_tokens", 0),
            "seconds": time.monotonic() - begin,
        }
        return hand_over(current, context), {"row": row, "cut": metrics}


def judging_windows(context: Context, documents: tuple[str, ...], tokens: int) -> Tensor:
    """Windows [n, length] that candidates are judged on, no longer than the original can read."""
    return joined_windows(
        documents,
        context.original.tokenizer(),
        length=readable(WINDOW, context.original.config),
        tokens=tokens,
        setting="the window candidates are judged on",
        text="calibration",
    )


@torch.no_grad()
def divergence_from(context: Context, checkpoint: Checkpoint, windows: Tensor) -> float:
    """Mean KL from the original, nats per token."""
    device = context.fabric.device
    model, original = (load_original(c, device) for c in (checkpoint, context.original))
    total, count = 0.0, 0
    with context.progress.bar("judging", len(windows)) as advance:
        for window in windows.to(device):
            ours, theirs = (last_hidden(m, window[None])[0, :-1] for m in (model, original))
            found = divergence(ours, head_weight(model), theirs, head_weight(original), window[1:])
            total, count = total + float(found.kl.sum()), count + len(found.kl)
            advance(1)
    return total / count
