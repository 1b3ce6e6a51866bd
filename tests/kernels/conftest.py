"""The forms of the loss kernels on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from compress_kernels.levels import force_level


@pytest.fixture(params=["reference", "portable", "avx2", "avx512"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "reference":
        monkeypatch.setenv("COMPRESS_KERNELS", "reference")
    else:
        monkeypatch.delenv("COMPRESS_KERNELS", raising=False)
        try:
            force_level(request.param)
        except ValueError as error:
            pytest.skip(str(error))
    yield request.param
    force_level(None)
