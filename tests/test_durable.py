"""What systems do not have in common, on this one: its answers are put in the place of theirs."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import filelock
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from compress import durable, hardware, preparation
from compress.data import wheel
from compress.durable import held, readable_as_others, sync_folder, sync_tree, write_atomically
from compress.paths import quoted


def test_text_is_written_in_utf8_whatever_the_locale(tmp_path):
    write_atomically(tmp_path / "a" / "report.html", "→ ✓ − 東京\n")
    assert (tmp_path / "a" / "report.html").read_bytes() == "→ ✓ − 東京\n".encode()
    assert len(list((tmp_path / "a").iterdir())) == 1


def failing(number):
    def function(*_):
        raise OSError(number, os.strerror(number))

    return function


def test_a_folder_that_cannot_be_synced_is_left_as_it_is_and_a_full_disk_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(durable.os, "fsync", failing(errno.EINVAL))
    sync_folder(tmp_path)
    monkeypatch.setattr(durable.os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        sync_folder(tmp_path)


def test_on_windows_files_are_open_for_writing_when_they_are_synced_and_folders_are_not_opened(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_bytes(b"kept")
    synced = []

    def fsync(handle):
        os.write(handle, b"")  # fails on what is open for reading only
        synced.append(handle)

    monkeypatch.setattr(durable, "WINDOWS", True)
    monkeypatch.setattr(durable.os, "fsync", fsync)
    sync_tree(tmp_path)
    assert len(synced) == 1 and (tmp_path / "inner" / "file").read_bytes() == b"kept"


@pytest.mark.parametrize("windows", [False, True])
def test_one_holds_a_lock_at_a_time(tmp_path, monkeypatch, windows):
    monkeypatch.setattr(durable, "WINDOWS", windows)
    file = tmp_path / "run.lock"
    with held(file, timeout=0, remove=True), pytest.raises(TimeoutError), held(file, timeout=0):
        pass
    assert not file.exists()
    with held(file, timeout=0):
        pass


def test_a_file_system_without_locks_is_gone_on_with_and_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(filelock.FileLock, "acquire", failing(errno.ENOLCK))
    with held(tmp_path / "run.lock", timeout=0):
        pass
    assert "cannot be locked" in caplog.text
    monkeypatch.setattr(filelock.FileLock, "acquire", failing(errno.EACCES))
    with pytest.raises(PermissionError), held(tmp_path / "run.lock"):
        pass


def test_a_file_that_its_owner_alone_may_read_gets_the_rights_of_any_new_one(tmp_path):
    plain, private = tmp_path / "plain", tmp_path / "private"
    plain.touch()
    private.touch(mode=0o600)
    readable_as_others(private)
    assert private.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("place", ["C:\\Users\\FIRSTN~1\\x (86)", "/tmp/Łukasz's folder", "/a b/c=d,e"])
def test_any_folder_can_be_a_value_in_an_override(place):
    parsed = OverridesParser.create().parse_override(f"hydra.sweep.dir={quoted(place)}")
    assert parsed.value() == place


@pytest.mark.parametrize(
    ("text", "cores"), [("200000 100000\n", 2), ("150000 100000\n", 2), ("max 100000\n", None), ("1000 100000\n", 1)]
)
def test_a_container_has_as_many_cores_as_its_share_of_time_fills(tmp_path, monkeypatch, text, cores):
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(hardware, "QUOTAS", (("/nowhere", ""), (str(tmp_path / "cpu.max"), "")))
    assert hardware.cores_of_quota() == cores
    monkeypatch.setattr(preparation.os, "sched_getaffinity", lambda _: set(range(64)))
    assert preparation.available_threads() == (cores or 64)


def test_the_older_form_of_that_lies_in_two_files(tmp_path, monkeypatch):
    (tmp_path / "quota").write_text("250000\n")
    (tmp_path / "period").write_text("100000\n")
    monkeypatch.setattr(hardware, "QUOTAS", ((str(tmp_path / "quota"), str(tmp_path / "period")),))
    assert hardware.cores_of_quota() == 3
    (tmp_path / "quota").write_text("-1\n")
    assert hardware.cores_of_quota() is None


def test_an_environment_without_pip_has_the_one_that_python_brings_along(monkeypatch):
    monkeypatch.setattr(wheel.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    assert wheel._pip() == ["-m", "pip"], "there is none: the message says what to check"
    monkeypatch.undo()
    pytest.importorskip("ensurepip")
    monkeypatch.setattr(wheel.importlib.util, "find_spec", lambda _: None)
    command = [sys.executable, "-I", *wheel._pip(), "--version"]
    if command[2] == "-m":
        pytest.skip("this Python brings no pip along")
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.startswith("pip ")
