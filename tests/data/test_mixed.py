"""Windows of two texts: the share is kept, and a window is filled as far as it goes."""

from __future__ import annotations

import torch

from compress.data.mixing import PASSES, cut_to, fitted, mixed
from compress.data.windows import Windows


def text(n: int, length: int) -> Windows:
    return Windows(torch.full((n, length), 7, dtype=torch.int32), torch.full((n,), length, dtype=torch.int32))


def test_cut_to() -> None:
    windows = torch.arange(20).view(2, 10)
    assert cut_to(windows, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [10, 11, 12, 13], [14, 15, 16, 17]]
    assert torch.equal(cut_to(windows, 10), windows) and torch.equal(cut_to(windows, 64), windows)


def test_short_pieces_are_joined_to_fill_longer_windows() -> None:
    windows = torch.arange(15).view(5, 3)
    assert fitted(windows, 7).tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert torch.equal(fitted(windows, 5), windows) and fitted(windows, 100).shape == (1, 15)
    assert torch.equal(fitted(windows, 2), cut_to(windows, 2))
    found = mixed(text(4, 7), windows + 100, 0.5, seed=0)
    rows = found.ids[:, 0] != 7
    assert sorted(found.ids[rows][:, :6].flatten().tolist()) == list(range(100, 112))
    assert found.lengths[rows].tolist() == [6, 6]


def test_share_and_order() -> None:
    own = torch.full((4, 8), 5)
    found = mixed(text(40, 8), own, 0.25, seed=0)
    from_own = (found.ids == 5).all(1)
    assert int(from_own.sum()) == 10 and len(found.ids) == 40
    assert not bool(from_own[-10:].all()), "not shuffled"
    assert torch.equal(found.ids, mixed(text(40, 8), own, 0.25, seed=0).ids)


def test_own_text_is_not_repeated_for_ever() -> None:
    own = torch.arange(3)[:, None].repeat(1, 8)
    found = mixed(text(400, 8), own, 0.25, seed=0)
    seen = found.ids[(found.ids != 7).any(1)][:, 0]
    assert seen.bincount().tolist() == [PASSES] * 3 and len(found.ids) == 400


def test_shorter_windows_are_padded_and_say_so() -> None:
    found = mixed(text(4, 12), torch.full((2, 8), 5), 0.5, seed=0)
    rows = found.ids[:, 0] == 5
    assert found.lengths[rows].tolist() == [8, 8] and bool((found.ids[rows][:, :8] == 5).all())


def test_no_own_text_or_no_share_changes_nothing() -> None:
    windows = text(4, 8)
    assert mixed(windows, torch.zeros(0, 8), 0.5, 0) is windows
    assert mixed(windows, torch.zeros(2, 8), 0.0, 0) is windows
