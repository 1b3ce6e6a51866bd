"""Teacher correction: a short fine-tune of the teacher on the training text before it teaches.

Minitron in practice (arXiv 2408.11796): a teacher that has never seen the text of the distillation guides poorly on it;
a light fine-tuning on that text lowers the student's loss. The corrected teacher is kept by content and serves every
student of a sweep. Reports go on measuring against the original.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import torch

from compress.checkpoint import Checkpoint
from compress.keys import WITHOUT_EFFECT, machine_inputs, sidecars_key, source_key
from compress.losses.logits import Logits
from compress.losses.stored import NoTeacher
from compress.store import content_key
from compress.train.fit import fit
from compress.train.student import load_student, windows_for, write_dense

if TYPE_CHECKING:
    from compress.stage import Context
    from compress.train.settings import Training

VERSION = 2


def corrected_teacher(settings: Training, context: Context) -> Checkpoint:
    """The original, trained on the text with cross-entropy as `settings` say; from the store if it is there."""
    store, original = context.store, context.original
    assert store is not None
    key = correction_key(settings, context)
    with store.locked(key, lambda: context.progress.say("waits: another run corrects this teacher now")):
        if store.find(key) is None:
            context.progress.say(f"correcting the teacher on {settings.tokens:,} tokens of the text")
            with store.writing(key) as folder:
                logs = None if context.logs is None else context.logs / "teacher"
                own = replace(context, folder=folder, scratch=store.scratch(key), logs=logs)
                windows = windows_for(settings, own)
                model = load_student(original, settings, own)
                fitted = fit(model, NoTeacher(), Logits(kl=0.0, ce=1.0), windows, settings, own)
                write_dense(model, original, own)
                store.commit(key, folder, {"kind": "teacher correction", "metrics": fitted.metrics()})
        else:
            context.progress.say("the corrected teacher is in the store")
    return replace(original, folder=store.folder(key))


def correction_key(settings: Training, context: Context) -> str:
    """Key of everything its weights depend on."""
    assert context.store is not None
    fields = {name: value for name, value in asdict(settings).items() if name not in WITHOUT_EFFECT}
    return content_key(
        {
            "kind": "teacher correction",
            "version": VERSION,
            "teacher": source_key(context.original.folder, context.store),
            "sidecars": sidecars_key(context.original.folder),
            "fields": fields,
            "text": context.corpus.fingerprint,
            "seed": context.seed,
            **machine_inputs(context.fabric.device.type, torch.get_num_threads()),
        }
    )
