"""What the streaming writer leaves are plain safetensors files, and the same ones however often it was interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from compress.checkpoint import Checkpoint
from compress.writer import INDEX, TensorWriter

DTYPES = [torch.float32, torch.bfloat16, torch.int8, torch.uint8, torch.float64, torch.int64, torch.bool, torch.float16]


def tensors(count: int = 40, seed: int = 0) -> dict[str, torch.Tensor]:
    """Of all types and odd sizes: whatever is misaligned somewhere would show."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for i in range(count):
        rows, columns = torch.randint(1, 12, (2,), generator=generator).tolist()
        found[f"layer.{i}.weight"] = torch.randint(0, 100, (rows, columns), generator=generator).to(DTYPES[i % 8])
    return found | {"scalar": torch.tensor(3.5), "none": torch.zeros(0, 4), "view": torch.arange(12.0).view(3, 4).t()}


def write(folder: Path, given: dict[str, torch.Tensor], names: list[str], shard_bytes: int) -> None:
    folder.mkdir()
    writer = TensorWriter(folder, names, shard_bytes=shard_bytes)
    for name, tensor in given.items():
        writer.add(name, tensor)
    writer.close()


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("shard_bytes", [1 << 30, 1000])
@pytest.mark.parametrize("known", ["all", "none", "few", "more"])
def test_safetensors_reads_what_was_written(known: str, shard_bytes: int, tmp_path: Path) -> None:
    given = tensors()
    names = {"all": [*given], "none": [], "few": ["scalar"], "more": [*given, *(f"never.{i}" for i in range(99))]}
    write(tmp_path / "out", given, names[known], shard_bytes)
    read: dict[str, torch.Tensor] = {}
    for file in (tmp_path / "out").glob("*.safetensors"):
        read |= load_file(file)
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert all(torch.equal(opened.get_tensor(name), given[name]) for name in opened.keys())  # noqa: SIM118
    assert read.keys() == given.keys()
    assert all(torch.equal(read[name], given[name]) and read[name].dtype == given[name].dtype for name in given)
    assert not [*(tmp_path / "out").glob("*.part"), *(tmp_path / "out").glob("*.tail")]


def test_index_names_every_file(tmp_path: Path) -> None:
    given = tensors()
    write(tmp_path / "out", given, [*given], 1000)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in given.values())
    assert index["weight_map"].keys() == given.keys()
    assert {*index["weight_map"].values()} == {f.name for f in (tmp_path / "out").glob("*.safetensors")}
    checkpoint = Checkpoint(tmp_path / "out", frozenset())
    assert all(torch.equal(t, given[name]) for name, t in checkpoint.tensors())
    assert [name for name, _ in checkpoint.tensors(without=[*given][3:])] == sorted([*given][:3])
    assert not list(checkpoint.tensors(without=given))


def steps(given: dict[str, torch.Tensor]) -> list[list[str]]:
    """Names in groups of three, as the parts of one encoded tensor."""
    names = list(given)
    return [names[i : i + 3] for i in range(0, len(names), 3)]


class KilledError(Exception):
    pass


def run(
    folder: Path, journal: Path, given: dict[str, torch.Tensor], shard_bytes: int, stop: tuple[int, int] | None = None
) -> list[str]:
    """All steps, or until the tensor `stop` (step, tensor in it); returns the steps that were worked on."""
    folder.mkdir()
    writer = TensorWriter(folder, given, journal, shard_bytes)
    worked = []
    for number, names in enumerate(steps(given)):
        if names[0] in writer.done:
            assert writer.done[names[0]] == {"number": number, "third": number / 3}
            continue
        worked.append(names[0])
        for place, name in enumerate(names):
            if stop == (number, place):
                writer._saver.shutdown()  # a process that is gone writes no more
                raise KilledError
            writer.add(name, given[name])
        writer.step(names[0], {"number": number, "third": number / 3})
    writer.close()
    return worked


@pytest.mark.parametrize("shard_bytes", [1 << 30, 1000])
@pytest.mark.parametrize("stop", [(0, 0), (0, 1), (4, 0), (7, 1), (9, 2), (14, 0)])
def test_interrupted_anywhere_gives_the_same_bytes(stop: tuple[int, int], shard_bytes: int, tmp_path: Path) -> None:
    given = tensors()
    run(tmp_path / "whole", tmp_path / "j0", given, shard_bytes)
    with pytest.raises(KilledError):
        run(tmp_path / "first", tmp_path / "j1", given, shard_bytes, stop)
    worked = run(tmp_path / "second", tmp_path / "j1", given, shard_bytes)
    assert worked == [names[0] for names in steps(given)][stop[0] :]
    assert files(tmp_path / "second") == files(tmp_path / "whole")


def test_killed_after_the_last_step(tmp_path: Path) -> None:
    """Before the result was made safe: its files are in the journal's folder still."""
    given = tensors()
    run(tmp_path / "first", tmp_path / "j", given, 1000)
    before = files(tmp_path / "first")
    assert run(tmp_path / "second", tmp_path / "j", given, 1000) == []
    assert files(tmp_path / "second") == before


def test_a_line_cut_short_is_not_believed(tmp_path: Path) -> None:
    given = tensors()
    run(tmp_path / "whole", tmp_path / "j0", given, 1000)
    with pytest.raises(KilledError):
        run(tmp_path / "first", tmp_path / "j", given, 1000, (6, 0))
    journal = tmp_path / "j/tensors/journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    assert run(tmp_path / "second", tmp_path / "j", given, 1000)[0] == steps(given)[5][0]
    assert files(tmp_path / "second") == files(tmp_path / "whole")


def test_a_journal_without_its_files_is_not_believed(tmp_path: Path) -> None:
    given = tensors()
    with pytest.raises(KilledError):
        run(tmp_path / "first", tmp_path / "j", given, 1000, (9, 0))
    (tmp_path / "j/tensors/model-00001.whole").unlink()
    assert len(run(tmp_path / "second", tmp_path / "j", given, 1000)) == len(steps(given))
