"""What each term of the distillation loss does to the held-out KL after the same few tokens of healing.

    python distill_terms.py --student DIR --teacher DIR --train FILE --measured FILE --work DIR [--tokens 20000]

DIR of the student: a pruned checkpoint (a result of `+pipeline=prune_only`; `prune_plan.json` in it maps the layers).
FILE: any text `data=text` reads. Every form heals the same student on the same windows; the KL is to the teacher,
forward, at temperature 1, whatever was trained on. A row goes to results/distill_terms.csv as soon as it is measured,
and a second run of the command goes on after the rows of the same tokens.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from tables import append_row, read_rows, versions

from compress.checkpoint import Checkpoint
from compress.data.text_files import TextFiles
from compress.data.windows import joined_windows
from compress.distill.stage import Distill, TeacherStore
from compress.evaluate.quality import measure, reference
from compress.losses.terms import Terms
from compress.progress import Terminal
from compress.runtime.loading import load_model
from compress.stage import DENSE, PRUNED, Context
from compress.store import Store
from compress.train.settings import Schedule, Training

OFF = {"kl": 0.0}
FORMS: dict[str, dict[str, Any]] = {
    "forward KL": {},
    "reverse KL": {"loss": Terms(**OFF, reverse_kl=1.0)},
    "Jensen-Shannon, beta 0.5": {"loss": Terms(**OFF, js=1.0)},
    "skewed KL, alpha 0.1": {"loss": Terms(**OFF, skew_kl=1.0)},
    "skewed reverse KL, alpha 0.1": {"loss": Terms(**OFF, skew_reverse_kl=1.0)},
    "forward KL, temperature 2": {"loss": Terms(temperature=2.0)},
    "forward KL + cross-entropy": {"loss": Terms(kl=0.5, ce=0.5)},
    "forward KL + hidden": {"loss": Terms(hidden=1.0)},
    "forward KL + attention": {"loss": Terms(attention=1.0)},
    "forward KL, stored top 64": {"teacher_store": TeacherStore.topk},
    "forward KL, 64 stored draws": {"teacher_store": TeacherStore.sampled},
    "forward KL, corrected teacher": {"teacher_correction_tokens": 4096},
}


def main() -> None:
    """Heal and measure one form after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("student", "teacher", "train", "measured", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=4, help="windows of 256 tokens in an optimizer step")
    parser.add_argument("--windows", type=int, default=16, help="held-out windows of 1,024 tokens")
    parser.add_argument("--forms", nargs="*", default=list(FORMS), choices=list(FORMS))
    options = parser.parse_args()
    teacher = Checkpoint(options.teacher, frozenset({DENSE}), options.teacher.name)
    student = Checkpoint(options.student, frozenset({DENSE, PRUNED}), options.student.name)
    corpus = TextFiles(path=str(options.train), heldout_path=str(options.measured)).load()
    held_out = joined_windows(
        corpus.heldout, teacher.tokenizer(), length=1024, tokens=options.windows * 1024, setting="--windows"
    )
    original = reference(load_model(teacher.folder), held_out, lambda _: None)
    done = {(row["form"], row["tokens"]) for row in read_rows("distill_terms")}

    def write(form: str, tokens: int, folder: Path, seconds: float, rate: float) -> None:
        quality = measure(load_model(folder), original, lambda _: None)
        row = {
            "form": form,
            "tokens": tokens,
            "kl": f"{quality.kl_to_teacher:.4f}",
            "kl_stderr": f"{quality.kl_stderr:.4f}",
            "ppl": f"{quality.ppl:.2f}",
            "scored_tokens": quality.scored_tokens,
            "seconds": f"{seconds:.0f}",
            "tokens_per_second": f"{rate:.0f}",
            "versions": versions(("compress", "torch")),
        }
        append_row("distill_terms", row)
        print(f"{form:32} {tokens:>7} tokens  KL {quality.kl_to_teacher:.4f}  perplexity {quality.ppl:.2f}", flush=True)

    if ("not healed", "0") not in done:
        write("not healed", 0, student.folder, 0.0, 0.0)
    for form in options.forms:
        if (form, str(options.tokens)) in done:
            continue
        train = Training(tokens=options.tokens, batch=options.batch, rate=2e-4, schedule=Schedule.linear, own_share=0.0)
        folder = options.work / "healed"
        for place in (folder, options.work / "progress"):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
        context = Context(
            folder=folder,
            scratch=options.work / "progress",
            original=teacher,
            dense=student,
            corpus=corpus,
            own_text=lambda: torch.empty(0, 8, dtype=torch.long),
            fabric=Fabric(accelerator="cpu", devices=1),
            progress=Terminal(),
            store=Store(options.work / "store"),
        )
        begin = time.perf_counter()
        _, told = Distill(train=train, **FORMS[form]).run(student, context)
        gc.collect()
        write(form, options.tokens, folder, time.perf_counter() - begin, told["tokens_per_second"])


if __name__ == "__main__":
    main()
