"""The teacher's logits on the training text, computed once, kept by content, and read by every student of a sweep.

Two forms (compress_kernels.sparse_kl has the losses): the k most likely tokens of every position with the mass of all
others, or k draws that estimate the forward KL without bias (Sparse Logit Sampling, arXiv 2503.16870). Of a vocabulary
of 49,152 in bf16 a position takes 98 kB; kept are, in bytes per position,

    topk:     k (id + 2) + 2        ids in 2 bytes (4 above 65,536 tokens), log-probabilities and the tail in fp16
    sampled:  k id + 4              ids and the entropy in fp32

so 64 tokens of the embedded model's teacher take 258 and 132 bytes. Stages whose windows, teacher and settings are the
same find the same store: its key is made of these, not of the student. Parts of PART windows are written one by one
into the progress folder, each whole or not at all; a killed run goes on with the first part that is missing.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.durable import readable_as_others, sync_file, sync_folder
from compress.keys import machine_inputs, sidecars_key, source_key
from compress.losses.stored import StoredTeacher
from compress.preparation import check_disk
from compress.runtime.loading import load_original
from compress.store import content_key
from compress.writer import link_or_copy

if TYPE_CHECKING:
    from compress_kernels import SparseTargets

    from compress.checkpoint import Checkpoint
    from compress.data.windows import Windows
    from compress.stage import Advance, Context
    from compress.store import Store

VERSION = 1
PART = 64
"""Windows in a file."""
BATCH = 4
"""Windows that the teacher computes at a time."""
SMALL_VOCABULARY = 1 << 16


@dataclass(frozen=True)
class Kept:
    """What is kept of every position, and how it is made.

    k: tokens of a position; sampled: draws instead of the most likely ones; temperature: of the teacher's softmax;
    bf16: computed under bf16 autocast, as a training would; seed: of the draws.
    """

    k: int
    sampled: bool
    temperature: float
    bf16: bool
    seed: int

    def bytes_per_position(self, vocab: int) -> int:
        """Exact size, but for the headers of the files."""
        each = 2 if vocab <= SMALL_VOCABULARY else 4
        return self.k * each + 4 if self.sampled else self.k * (each + 2) + 2


def stored_teacher(teacher: Checkpoint, windows: Windows, kept: Kept, context: Context) -> StoredTeacher:
    """The store of `teacher` on `windows`, written first if it is not there.

    Raises:
        UserError: it does not fit on the disk.
    """
    store = context.store
    assert store is not None
    key = store_key(teacher, windows, kept, context)
    with store.locked(key, lambda: context.progress.say("waits: another run writes this teacher's logits now")):
        if store.find(key) is None:
            _write(store, key, teacher, windows, kept, context)
        else:
            context.progress.say("the teacher's logits are in the store")
    return FromFiles(store.folder(key), kept)


def store_key(teacher: Checkpoint, windows: Windows, kept: Kept, context: Context) -> str:
    """Key of everything the numbers depend on, the student not among it."""
    assert context.store is not None
    text = hashlib.sha256(str(tuple(windows.ids.shape)).encode())
    for part in (windows.ids, windows.lengths):
        text.update(part.contiguous().numpy().tobytes())
    device = context.fabric.device
    return content_key(
        {
            "kind": "teacher logits",
            "version": VERSION,
            "teacher": source_key(teacher.folder, context.store),
            "sidecars": sidecars_key(teacher.folder),
            **({} if teacher.rows is None else {"rows": teacher.rows}),
            "windows": text.hexdigest(),
            "kept": kept.__dict__,
            **machine_inputs(device.type, torch.get_num_threads()),
        }
    )


def _write(store: Store, key: str, teacher: Checkpoint, windows: Windows, kept: Kept, context: Context) -> None:
    count, length = windows.ids.shape
    vocab = teacher.rows or teacher.config.vocab_size
    size = count * (length - 1) * kept.bytes_per_position(vocab)
    context.progress.say(
        f"the teacher's logits will take {size / 1e6:.1f} MB: {count} windows of {length} tokens, "
        f"{kept.bytes_per_position(vocab)} bytes a token"
    )
    check_disk(store.root, size, "COMPRESS_CACHE=DIR")
    scratch = store.scratch(key)
    with context.progress.bar("the teacher's logits", count) as advance:
        write_parts(scratch, teacher, windows, kept, context.fabric.device, advance)
    with store.writing(key) as folder:
        for file in sorted(scratch.glob("part-*.safetensors")):
            link_or_copy(file, folder / file.name)
        store.commit(key, folder, {"kind": "teacher logits", "bytes": size, "windows": count})


@torch.no_grad()
def write_parts(
    folder: Path, teacher: Checkpoint, windows: Windows, kept: Kept, device: torch.device, advance: Advance
) -> None:
    """Every part that is not in `folder` yet, each written beside its place and then renamed."""
    from safetensors.torch import save_file

    model: Any = None
    for number, begin in enumerate(range(0, len(windows.ids), PART)):
        ids = windows.ids[begin : begin + PART]
        file = folder / f"part-{number:06d}.safetensors"
        if not file.exists():
            model = load_original(teacher, device) if model is None else model
            temporary = folder / f".{file.name}.{os.getpid()}"
            save_file(_part(model, ids.to(device).long(), kept, number), temporary)
            readable_as_others(temporary)
            sync_file(temporary)
            temporary.replace(file)
            sync_folder(folder)
        advance(len(ids))


def _part(model: Any, ids: Tensor, kept: Kept, number: int) -> dict[str, Tensor]:
    """Tensors [windows, length - 1, ...] of one part; draws depend on its number alone, not on what went before."""
    from compress_kernels import sparse_targets

    # a generator per part: what is written does not depend on where a killed run went on
    generator = torch.Generator().manual_seed((kept.seed << 20) + number) if kept.sampled else None
    head = model.get_output_embeddings().weight
    columns: dict[str, list[Tensor]] = {}
    for few in torch.split(ids, BATCH):
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=kept.bf16):
            hidden = model.base_model(input_ids=few, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
            found = sparse_targets(hidden, head, kept.k, kept.temperature, generator)
        narrow = torch.uint16 if head.shape[0] <= SMALL_VOCABULARY else torch.int32
        columns.setdefault("ids", []).append(found.ids.to("cpu", torch.int32).to(narrow))
        if found.entropy is not None:
            columns.setdefault("entropy", []).append(found.entropy.cpu())
        if found.log_mass is not None:
            columns.setdefault("log_mass", []).append(found.log_mass.to("cpu", torch.float16))
    whole = {name: torch.cat(parts) for name, parts in columns.items()}
    return {name: t.view(len(ids), ids.shape[1] - 1, *t.shape[1:]) for name, t in whole.items()}


class FromFiles(StoredTeacher):
    """Reads what was written; the part read last stays open."""

    def __init__(self, folder: Path, kept: Kept) -> None:
        super().__init__()
        self.folder, self.kept = folder, kept
        self._open: tuple[int, dict[str, Tensor]] = (-1, {})

    def targets(self, rows: Tensor, positions: int) -> SparseTargets:
        """Targets of windows `rows`, flattened, on their device."""
        from compress_kernels import SparseTargets

        found = [
            {name: t[row % PART, :positions] for name, t in self._part(row // PART).items()} for row in rows.tolist()
        ]
        columns = {name: torch.cat([part[name] for part in found]).to(rows.device) for name in found[0]}
        ids = columns["ids"].long()
        if self.kept.sampled:
            return SparseTargets(ids, entropy=columns["entropy"])
        # fp16 rounds each a little: together they are a distribution again
        return SparseTargets(ids, log_mass=columns["log_mass"].float().log_softmax(1))

    def _part(self, number: int) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        if self._open[0] != number:
            self._open = number, load_file(self.folder / f"part-{number:06d}.safetensors")
        return self._open[1]
