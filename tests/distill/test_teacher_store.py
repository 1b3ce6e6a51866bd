"""The teacher's logits, kept: what is written is what the teacher says, a kill costs one part, students share it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import compress
from compress.checkpoint import Checkpoint
from compress.data.windows import Windows
from compress.distill import teacher_store
from compress.distill.stage import Distill, TeacherStore
from compress.distill.teacher_store import FromFiles, Kept, store_key, stored_teacher, write_parts
from compress.errors import UserError
from compress.losses.logits import Logits
from compress.losses.terms import Terms
from compress.runtime.loading import load_model
from compress.stage import Quiet
from compress.store import Store
from tests.pipelines.helpers import tiny_run

TOPK = Kept(k=7, sampled=False, temperature=2.0, bf16=False, seed=0)
DRAWN = replace(TOPK, sampled=True)


def windows(count: int = 10) -> Windows:
    ids = torch.randint(3, 300, (count, 12), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    return Windows(ids, torch.full((count,), 12, dtype=torch.int32))


def context(folder: Path) -> Any:
    return SimpleNamespace(store=Store(folder), progress=Quiet(), fabric=SimpleNamespace(device=torch.device("cpu")))


@pytest.fixture
def teacher(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    monkeypatch.setattr(teacher_store, "PART", 4)
    return Checkpoint(tiny_llama, frozenset())


def test_holds_what_the_teacher_says(teacher: Checkpoint, tmp_path: Path) -> None:
    """Read back in any order: the k most likely tokens, and the mass of the others."""
    stored = stored_teacher(teacher, windows(), TOPK, context(tmp_path))
    rows = torch.tensor([9, 0, 5])
    found = stored.targets(rows, 11)
    with torch.no_grad():
        logits = load_model(teacher.folder)(windows().ids[rows].long()).logits[:, :-1].flatten(0, 1)
    p, ids = (logits / 2).softmax(1).topk(7, dim=1)
    assert torch.equal(found.ids, ids)
    wanted = torch.cat([p, 1 - p.sum(1, keepdim=True)], 1).log()
    torch.testing.assert_close(found.log_mass, wanted, rtol=2e-3, atol=2e-3)  # fp16


@pytest.mark.parametrize("kept", [TOPK, DRAWN], ids=["topk", "sampled"])
def test_said_size_is_the_size(kept: Kept, teacher: Checkpoint, tmp_path: Path) -> None:
    write_parts(tmp_path, teacher, windows(), kept, torch.device("cpu"), lambda _: None)
    files = list(tmp_path.glob("part-*"))
    said = 10 * 11 * kept.bytes_per_position(320)
    assert len(files) == 3 and said <= sum(file.stat().st_size for file in files) < said + 3 * 400


@pytest.mark.parametrize("kept", [TOPK, DRAWN], ids=["topk", "sampled"])
def test_a_killed_run_writes_only_what_is_missing_and_the_same_bytes(
    kept: Kept, teacher: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = context(tmp_path / "a")
    whole = store_key(teacher, windows(), kept, undisturbed)
    stored_teacher(teacher, windows(), kept, undisturbed)

    killed = context(tmp_path / "b")
    real, calls = teacher_store._part, []

    def dies(*arguments: Any) -> Any:
        calls.append(arguments[-1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(teacher_store, "_part", dies)
    with pytest.raises(KeyboardInterrupt):
        stored_teacher(teacher, windows(), kept, killed)
    assert killed.store.find(whole) is None
    stored_teacher(teacher, windows(), kept, killed)
    assert calls == [0, 1, 1, 2]
    for file in sorted(undisturbed.store.folder(whole).glob("part-*")):
        assert file.read_bytes() == (killed.store.folder(whole) / file.name).read_bytes()
    assert not list((tmp_path / "b").glob("progress/*/*"))
    stored_teacher(teacher, windows(), kept, killed)
    assert len(calls) == 4


def test_key_is_of_teacher_text_and_settings(teacher: Checkpoint, tmp_path: Path) -> None:
    where = context(tmp_path)
    key = store_key(teacher, windows(), TOPK, where)
    assert key == store_key(teacher, windows(), TOPK, where)
    others = [replace(TOPK, k=8), replace(TOPK, temperature=1.0), replace(TOPK, bf16=True), DRAWN]
    keys = {store_key(teacher, windows(), kept, where) for kept in others}
    assert len(keys | {key, store_key(teacher, windows(9), TOPK, where)}) == 6


def test_a_student_learns_from_a_store_nearly_what_it_learns_online(teacher: Checkpoint, tmp_path: Path) -> None:
    """All but one token kept, the loss and its gradient are those of the online teacher up to fp16."""
    from compress.train.module import Distillation
    from compress.train.settings import Training
    from tests.models import tiny

    kept = Kept(k=319, sampled=False, temperature=1.0, bf16=False, seed=0)
    stored = stored_teacher(teacher, windows(), kept, context(tmp_path))
    rows = torch.tensor([2, 6])
    lengths = torch.tensor([12, 8], dtype=torch.int32)
    batch = {"ids": windows().ids[rows], "lengths": lengths, "rows": rows, "share": torch.ones(())}
    gradients = []
    for source in (load_model(teacher.folder), stored):
        _, student = tiny("llama", seed=1)
        loss = Distillation(student, source, Logits(), Training(), steps=4).training_step(batch, 0)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]))
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 5e-3
    assert isinstance(stored, FromFiles)


def test_a_sweep_writes_store_and_correction_once(
    tiny_llama: Path, text_file: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [
        "+distill@stages.distill=logits",
        "stages.distill.teacher_store=sampled",
        "stages.distill.teacher_k=8",
        "stages.distill.teacher_correction_tokens=1000",
        "stages.distill.train.checkpoint_seconds=0",
        "evaluate.prompts=[]",
        "evaluate.speed=false",
        "~stages.compensate",
    ]
    for keep in ("0.7", "0.8"):
        overrides = tiny_run("prune_only", tiny_llama, text_file, tmp_path / keep, *more, f"stages.prune.keep={keep}")
        report = compress.run(overrides)
        assert [stage["cached"] for stage in report["stages"]] == [False, False]
    kinds = [Store(cache / "store").find(folder.name)["kind"] for folder in (cache / "store/results").iterdir()]  # type: ignore[index]
    assert sorted(kinds) == ["distill", "distill", "prune", "prune", "teacher correction", "teacher logits"]


def test_what_a_store_cannot_give_is_refused() -> None:
    with pytest.raises(UserError, match="no states inside"):
        Distill(teacher_store=TeacherStore.topk, loss=Terms(hidden=1.0))
    with pytest.raises(UserError, match=r"forward KL only.*loss.js"):
        Distill(teacher_store=TeacherStore.sampled, loss=Terms(js=1.0))
    with pytest.raises(UserError, match="320 tokens in all"):
        Distill(teacher_store=TeacherStore.topk, teacher_k=320).check(SimpleNamespace(vocab_size=320))
    for wrong in ({"teacher_k": 0}, {"teacher_correction_tokens": -1}, {"teacher_correction_rate": 0.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Distill(**wrong)  # type: ignore[arg-type]
