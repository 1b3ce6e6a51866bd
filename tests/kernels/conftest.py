"""The forms of the loss kernels on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from compress_kernels.levels import LEVELS, force_level


@contextmanager
def forced(level: str) -> Iterator[str]:
    """One instruction set, if this machine has it."""
    try:
        force_level(level)
    except ValueError as error:
        pytest.skip(str(error))
    yield level
    force_level(None)


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    with forced(request.param) as name:
        yield name


@pytest.fixture(params=["reference", *LEVELS])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "reference":
        monkeypatch.setenv("COMPRESS_KERNELS", "reference")
        yield request.param
    else:
        monkeypatch.delenv("COMPRESS_KERNELS", raising=False)
        with forced(request.param) as name:
            yield name
