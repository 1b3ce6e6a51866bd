"""Sweeps over columns: the C kernel gives the reference's bits, and the reference the definition in fp64."""

from __future__ import annotations

from dataclasses import replace

import compress_kernels as ck
import pytest
import torch
from compress_kernels import cpu, reference, sweep_columns

from tests.kernels.sweeps import TABLES, request


def same(a: ck.Swept, b: ck.Swept) -> None:
    for name in ("levels", "aimed", "moved"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (33, 1), (65, 128), (7, 130)])
def test_the_c_kernel_gives_the_bits_of_the_reference(
    shape: tuple[int, int], shifted: bool, anchored: bool, table: str
) -> None:
    asked = request(*shape, table, anchored, shifted)
    before = asked.work.clone()
    same(cpu.sweep_columns(asked), reference.sweep_columns(asked))
    assert torch.equal(asked.work, before)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(threads: int) -> None:
    asked = request(200, 64, "nf4", True, True)
    expected = reference.sweep_columns(asked)
    torch.set_num_threads(threads)
    try:
        same(cpu.sweep_columns(asked), expected)
    finally:
        torch.set_num_threads(1)


def test_columns_of_a_wider_matrix() -> None:
    """Callers hand over slices, which are not contiguous."""
    wide = request(9, 64, "int4", True, True)
    part = slice(16, 40)
    names = ("work", "anchor", "scale", "offset")
    sliced = {name: getattr(wide, name)[:, part] for name in names}
    sliced |= {"coupling": wide.coupling[part, part], "pivot": wide.pivot[part], "gain": wide.gain[part]}
    asked = replace(wide, **sliced)
    whole = replace(asked, **{name: value.contiguous() for name, value in sliced.items()})
    same(sweep_columns(asked), reference.sweep_columns(whole))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("anchored", [True, False])
def test_the_reference_is_the_definition(table: str, anchored: bool) -> None:
    """In fp64, a column at a time, every level looked at; rows that meet a border go another way and are left out."""
    asked = request(64, 24, table, anchored, True, seed=3)
    found = reference.sweep_columns(asked)
    work, scale, coupling = asked.work.double().clone(), asked.scale.double(), asked.coupling.double()
    assert asked.offset is not None
    offset, levels = asked.offset.double(), asked.table.double()
    sound = torch.ones(64, dtype=torch.bool)
    for j in range(24):
        x = work[:, j] * asked.pivot[j].double()
        x = x if asked.anchor is None else x + asked.anchor[:, j].double()
        values = levels[None] * scale[:, j, None] + offset[:, j, None]
        distance = (values - x[:, None]).abs()
        best = distance.amin(1)
        chosen = levels[distance.argmin(1)]
        chosen = torch.where(scale[:, j] == 0, levels[levels.abs().argmin()], chosen)
        near = ((distance - best[:, None]) < 1e-5).sum(1) > (2 if table == "fp4" else 1)
        sound &= ~near | (scale[:, j] == 0)
        value = chosen * scale[:, j] + offset[:, j]
        anchor = None if asked.anchor is None else asked.anchor[:, j].double()
        moved = (x - value if anchor is None else value - anchor) * asked.gain[j].double()
        assert torch.equal(found.levels[sound, j].double(), chosen[sound]), j
        torch.testing.assert_close(found.aimed[sound, j].double(), x[sound], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.moved[sound, j].double(), moved[sound], rtol=1e-4, atol=1e-4)
        work[:, j + 1 :] -= moved[:, None] * coupling[j, j + 1 :]
    assert int(sound.sum()) > 32


def test_a_forced_reference_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_KERNELS", "reference")
    called = []
    original = reference.sweep_columns
    monkeypatch.setattr(reference, "sweep_columns", lambda asked: called.append(1) or original(asked))
    asked = request(5, 12, "int4", False, False)
    same(sweep_columns(asked), original(asked))
    assert called


@pytest.mark.parametrize("name", ["work", "coupling", "pivot", "gain", "scale", "anchor", "offset", "table"])
def test_wrong_shapes_and_types_are_refused(name: str) -> None:
    asked = request(5, 12, "int4", True, True)
    with pytest.raises(ValueError, match=name):
        sweep_columns(replace(asked, **{name: getattr(asked, name).double()}))
    if name not in ("work", "table"):
        with pytest.raises(ValueError, match=name):
            sweep_columns(replace(asked, **{name: getattr(asked, name)[:-1]}))
