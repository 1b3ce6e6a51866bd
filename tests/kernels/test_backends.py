"""Choosing a backend, compiling the C library: once, safely, or not at all."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import compress_kernels as ck
import pytest
import torch
from compress_kernels import native

PACKAGES = str(Path(ck.__file__).parent.parent)
QUANTIZE = """
import torch, warnings
import compress_kernels as ck
w = torch.randn(1000, generator=torch.Generator().manual_seed(0))
q = ck.quantize_4bit(w)
print(ck.backend_name("cpu"), int(q.codes.long().sum()), int(q.absmax.long().sum()))
"""


def start(code: str, **environment: str) -> subprocess.Popen[str]:
    everything = {k: v for k, v in os.environ.items() if k not in ("COMPRESS_KERNELS", "TRITON_INTERPRET", "CC")}
    everything["PYTHONPATH"] = os.pathsep.join([PACKAGES, everything.get("PYTHONPATH", "")])
    everything.update(environment)
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], env=everything, stdout=pipe, stderr=pipe, text=True)


def run(code: str, **environment: str) -> tuple[str, str]:
    process = start(code, **environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.strip(), err


def test_processes_that_start_at_once_share_one_build(tmp_path: Path) -> None:
    # both compile everything: without optimizing, in a part of the time
    quick = tmp_path / "quick_cc"
    quick.write_text(f'#!/bin/sh\nexec {shlex.join(native.find_compiler())} "$@" -O0\n')
    quick.chmod(0o755)
    chosen = {"COMPRESS_CACHE": str(tmp_path), "CC": str(quick)}
    running = [start(QUANTIZE, **chosen) for _ in range(2)]
    results = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], results
    assert len({out for out, _ in results}) == 1
    assert results[0][0].startswith("cpu ")
    left = list((tmp_path / "kernels").iterdir())
    assert [path.suffix for path in left] == [".so"], "a build folder was left behind"
    stamp = left[0].stat().st_mtime_ns
    run(QUANTIZE, **chosen)
    assert left[0].stat().st_mtime_ns == stamp, "the cached library was built again"


def test_no_compiler_means_the_reference_and_one_line(tmp_path: Path, fresh_cache: Callable[[Path], Path]) -> None:
    expected, _ = run(QUANTIZE, COMPRESS_CACHE=str(fresh_cache(tmp_path / "cache")))
    empty = tmp_path / "empty"
    empty.mkdir()
    for environment in ({"PATH": str(empty)}, {"CC": "no-such-compiler"}, {"CC": "false"}):
        out, err = run(QUANTIZE, COMPRESS_CACHE=str(tmp_path / "other"), **environment)
        assert out == expected.replace("cpu ", "reference ")
        warned = [line for line in err.splitlines() if "UserWarning" in line]
        assert len(warned) == 1 and "plain torch reference" in warned[0]


def test_without_a_compiler_a_library_that_was_built_before_is_used(
    tmp_path: Path, fresh_cache: Callable[[Path], Path]
) -> None:
    """As in an image whose last stage has no compiler."""
    cache = fresh_cache(tmp_path / "cache")
    expected, _ = run(QUANTIZE, COMPRESS_CACHE=str(cache))
    out, err = run(QUANTIZE, COMPRESS_CACHE=str(cache), CC="no-such-compiler")
    assert out == expected and out.startswith("cpu ") and not err
    wrapped, _ = run(QUANTIZE, COMPRESS_CACHE=str(cache), CC=f"env {native.find_compiler()[0]}")
    assert wrapped == expected


def test_forced_cpu_without_a_compiler_is_an_error(tmp_path: Path) -> None:
    process = start(QUANTIZE, COMPRESS_CACHE=str(tmp_path), CC="no-such-compiler", COMPRESS_KERNELS="cpu")
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0 and "no C compiler found (tried no-such-compiler)" in err


def test_import_does_not_load_triton_or_compile(tmp_path: Path) -> None:
    loaded = "'triton' in sys.modules"
    code = f"import sys, torch; before = {loaded}; import compress_kernels; print({loaded}, before)"
    out, _ = run(code, COMPRESS_CACHE=str(tmp_path))
    now, before = out.split()
    assert now == before
    assert not (tmp_path / "kernels").exists()


def test_environment_forces_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("COMPRESS_KERNELS", "reference")
    assert ck.backend_name("cpu") == "reference"
    assert ck.backend_name(torch.device("cuda")) == "reference"
    monkeypatch.setenv("COMPRESS_KERNELS", "cpu")
    assert ck.backend_name("cpu") == "cpu"
    with pytest.raises(ValueError, match="cannot run on a cuda tensor"):
        ck.backend_name("cuda")
    monkeypatch.setenv("COMPRESS_KERNELS", "triton")
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        ck.backend_name("cpu")
    monkeypatch.setenv("COMPRESS_KERNELS", "fast")
    with pytest.raises(ValueError, match="'fast' is no backend: set one of reference, cpu, triton"):
        ck.backend_name("cpu")
    monkeypatch.delenv("COMPRESS_KERNELS")
    assert ck.backend_name("cuda") == "triton"
    assert ck.backend_name("cpu") == "cpu"


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("COMPRESS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.cache_folder() == tmp_path / "compress" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert native.cache_folder() == Path.home() / ".cache" / "compress" / "kernels"


def test_threads_of_our_own_when_the_process_has_no_openmp(tmp_path: Path) -> None:
    """Without GOMP_parallel the library starts pthreads; the result is the same, in a forked child too."""
    code = """
import os, torch
import compress_kernels as ck
from compress_kernels import native, reference
native.load_library().ck_set_gomp_parallel(None)
torch.set_num_threads(4)
w = torch.randn(2_000_001, generator=torch.Generator().manual_seed(0)).bfloat16()
expected = reference.quantize_4bit(w, 64, "nf4")[0]
assert torch.equal(ck.quantize_4bit(w).codes, expected)
child = os.fork()
if child == 0:
    native_codes = ck.quantize_4bit(w, double_quant=False).codes
    os._exit(0 if torch.equal(native_codes[:1000], expected[:1000]) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    run(code, COMPRESS_CACHE=str(native.cache_folder().parent))
