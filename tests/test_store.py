"""What is in the store is whole; what is damaged or unfinished is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from compress.checkpoint import tensor_digests, weights_key
from compress.store import Store, content_key


def fill(folder: Path, value: float = 1.0) -> None:
    save_file({"a": torch.full((4, 4), value), "b": torch.arange(5)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def commit(store: Store, key: str, value: float = 1.0) -> None:
    with store.locked(key), store.writing(key) as folder:
        fill(folder, value)
        store.commit(key, folder, {"metrics": {"x": 1}})


def test_found_again_with_its_facts(store: Store) -> None:
    assert store.find("k") is None
    commit(store, "k")
    record = store.find("k")
    assert record is not None and record["metrics"] == {"x": 1}
    assert record["weights"] == weights_key(tensor_digests(store.folder("k")))


def test_an_exception_leaves_nothing(store: Store) -> None:
    with pytest.raises(ValueError, match="no"), store.writing("k") as folder:
        fill(folder)
        raise ValueError("no")
    assert store.find("k") is None and not any((store.root / "unfinished").iterdir())


def test_left_overs_of_a_kill_are_swept(store: Store) -> None:
    (store.root / "unfinished" / "k-12345").mkdir(parents=True)
    commit(store, "k")
    assert not any((store.root / "unfinished").iterdir())


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_result_is_made_again(store: Store, damage: str) -> None:
    commit(store, "k")
    file = store.folder("k") / "model.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-3] ^= 4
        file.write_bytes(bytes(content))
    elif damage == "truncate":
        file.write_bytes(bytes(content[:-8]))
    else:
        file.unlink()
    assert store.find("k") is None
    commit(store, "k")
    assert store.find("k") is not None


def test_weights_key_sees_values_names_and_shapes(tmp_path: Path) -> None:
    keys = set()
    tensors = [
        {"a": torch.zeros(4)},
        {"b": torch.zeros(4)},
        {"a": torch.zeros(2, 2)},
        {"a": torch.zeros(4, dtype=torch.bfloat16)},
        {"a": torch.tensor([0.0, 0.0, 0.0, 1.0])},
    ]
    for number, state in enumerate(tensors):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_file(state, folder / "model.safetensors")
        keys.add(weights_key(tensor_digests(folder)))
    assert len(keys) == len(tensors)


def test_key_does_not_depend_on_the_order_of_its_parts() -> None:
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1}) != content_key({"a": 2, "b": 1})


def test_small_values_are_remembered(store: Store) -> None:
    assert store.recall("kind", "k") is None
    store.remember("kind", "k", {"x": [1, 2]})
    assert store.recall("kind", "k") == {"x": [1, 2]}


def test_who_waits_for_another_says_so_and_goes_on(tmp_path: Path) -> None:
    import threading

    store, order = Store(tmp_path), []
    held, told = threading.Event(), threading.Event()

    def first() -> None:
        with store.locked("key", lambda: order.append("first waits")):
            held.set()
            assert told.wait(30)
            order.append("first is done")

    def say() -> None:
        order.append("second waits")
        told.set()

    thread = threading.Thread(target=first)
    thread.start()
    assert held.wait(30)
    with store.locked("key", say):
        order.append("second goes on")
    thread.join()
    assert order == ["second waits", "first is done", "second goes on"]
