"""Shared fixtures: tiny models and texts, and a cache folder of the test session's own."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import FileLock

# before torch is imported: small matrices are slower on many threads than on one, and tests run side by side
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The modules that take longest first, so that no worker ends up alone with one."""
    items.sort(key=lambda item: "pipelines" not in item.path.parts)


@pytest.fixture(scope="session")
def compiled_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C kernels, compiled once for all tests and all processes they run in."""
    from compress_kernels.native import NativeBuildError, build_library

    base = tmp_path_factory.getbasetemp()
    home = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "compiled"
    home.mkdir(exist_ok=True)
    # one after the other: workers that start at once would each compile
    with FileLock(home / "lock"), pytest.MonkeyPatch.context() as patch, suppress(NativeBuildError):
        patch.setenv("COMPRESS_CACHE", str(home))
        build_library()
    (home / "kernels").mkdir(exist_ok=True)
    return home / "kernels"


@pytest.fixture
def fresh_cache(compiled_kernels: Path) -> Callable[[Path], Path]:
    """Makes a cache folder with nothing in it but the compiled kernels."""

    def make(folder: Path) -> Path:
        folder.mkdir()
        (folder / "kernels").symlink_to(compiled_kernels)
        return folder

    return make


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_cache: Callable[[Path], Path]) -> Iterator[Path]:
    """A cache folder for this test, in which nothing is known of this machine's speed: it is measured briefly."""
    folder = fresh_cache(tmp_path / "cache")
    monkeypatch.setenv("COMPRESS_CACHE", str(folder))
    monkeypatch.setattr("compress.estimate.machine.SECONDS", 0.02)
    # stages collect garbage before their memory is measured: without what was imported before, in a tenth of the time
    gc.freeze()
    yield folder
    gc.unfreeze()


@pytest.fixture
def cold_processes() -> None:
    """Runtimes start as users start them, every library imported anew; without this they are forked (tests/warm.py)."""


@pytest.fixture(autouse=True)
def _warm_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "cold_processes" not in request.fixturenames:
        from tests.warm import popen

        monkeypatch.setattr("compress.export.fresh.popen", popen)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with a tokenizer."""
    from tests.models import save

    folder = tmp_path_factory.mktemp("models") / "llama"
    save("llama", folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some hundred different sentences, one document a line in a jsonl file."""
    import json
    import random

    from tests.models import SENTENCES

    words = " ".join(SENTENCES).split()
    rng = random.Random(0)
    file = tmp_path_factory.mktemp("text") / "text.jsonl"
    rows = [{"text": " ".join(rng.choice(words) for _ in range(rng.randint(40, 120)))} for _ in range(200)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
