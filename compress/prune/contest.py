"""The work of the search: each candidate cut, compensated, healed briefly and judged; the winner handed over."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from compress_kernels import divergence
from torch import Tensor

from compress.arch import adapter_for
from compress.checkpoint import Checkpoint
from compress.data.windows import joined_windows
from compress.prune.nested import drop, hand_over, run_inside
from compress.runtime.loading import load_model
from compress.stage import Context, Metrics
from compress.train.module import head_weight, last_hidden

if TYPE_CHECKING:
    from compress.prune.search import PruneSearch

WINDOW = 256
JUDGING = 4
"""One document of so many of the calibration text judges the candidates."""


def run_search(checkpoint: Checkpoint, settings: PruneSearch, context: Context) -> tuple[Checkpoint, Metrics]:
    """Judge every candidate; what compensation left of the best one is the result."""
    possible, refused = settings.possible(checkpoint.config)
    context, judging = divided(context)
    windows = judging_windows(context, judging, settings.judge_tokens)
    rows: list[dict[str, Any]] = []
    best: tuple[float, Checkpoint, Metrics] | None = None
    for name, (stage, _) in possible.items():
        begin = time.monotonic()
        context.progress.say(f"candidate {name}")
        cut, metrics = run_inside(f"{name}-cut", stage.run, checkpoint, context, context.seed)
        if settings.compensate is not None:
            cut, _ = run_inside(f"{name}-compensated", settings.compensate.run, cut, context, context.seed)
            drop(context.scratch / f"{name}-cut")
        healed, trained = run_inside(f"{name}-healed", settings.healing(settings.brief).run, cut, context, context.seed)
        before, after = (divergence_from(context, model, windows) for model in (cut, healed))
        drop(healed.folder)
        rows.append(
            {
                "name": name,
                "share": dict(stage.share),
                "widths": metrics["widths"],
                "params": adapter_for(cut.config).non_embedding_parameters(cut.config),
                "kept_fraction": metrics["kept_fraction"],
                "kl_before": before,
                "kl_healed": after,
                "train_tokens": trained.get("train_tokens", 0),
                "seconds": time.monotonic() - begin,
            }
        )
        if best is None or after < best[0]:
            if best is not None:
                drop(best[1].folder)
            best = after, cut, metrics
        else:
            drop(cut.folder)
    assert best is not None, "check() lets no search start that has no candidate"
    chosen = min(rows, key=lambda row: row["kl_healed"])["name"]
    found = {"candidates": rows, "chosen": chosen, "refused": refused, "judged_on": int(windows.numel())}
    return hand_over(best[1], context), best[2] | found


def divided(context: Context) -> tuple[Context, tuple[str, ...]]:
    """The context without the last documents of its calibration text, and these: nothing is fitted on what judges.

    A text of one document is not divided.
    """
    documents = context.corpus.calibration
    apart = len(documents) // JUDGING or min(1, len(documents) - 1)
    if not apart:
        return context, documents
    corpus = replace(context.corpus, calibration=documents[:-apart])
    return replace(context, corpus=corpus), documents[-apart:]


def judging_windows(context: Context, documents: tuple[str, ...], tokens: int) -> Tensor:
    """Windows [n, length] that candidates are judged on, no longer than the original can read."""
    limit = getattr(context.original.config, "max_position_embeddings", None) or WINDOW
    return joined_windows(
        documents,
        context.original.tokenizer(),
        length=min(WINDOW, limit),
        tokens=tokens,
        setting="the window candidates are judged on",
    )


@torch.no_grad()
def divergence_from(context: Context, checkpoint: Checkpoint, windows: Tensor) -> float:
    """Mean KL from the original, nats per token."""
    device = context.fabric.device
    model, original = (load_model(c.folder, device=device) for c in (checkpoint, context.original))
    total, count = 0.0, 0
    with context.progress.bar("judging", len(windows)) as advance:
        for window in windows.to(device):
            ours, theirs = (last_hidden(m, window[None])[0, :-1] for m in (model, original))
            found = divergence(ours, head_weight(model), theirs, head_weight(original), window[1:])
            total, count = total + float(found.kl.sum()), count + len(found.kl)
            advance(1)
    return total / count
