"""The C library: compiled once with the system's compiler, cached, loaded through ctypes.

No torch headers and no build-time dependency: a few files of plain C, built in seconds. The cache is
`COMPRESS_CACHE`, else `$XDG_CACHE_HOME/compress`, else `~/.cache/compress`, in its `kernels/` folder; the file's name
has a hash of the sources, the flags and the processor architecture, and one of the compiler. A build goes to a
temporary folder and is renamed into place, so processes that start at once may each build, and each loads a whole
library.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
COMMON_FLAGS = (
    "-O3",
    "-std=gnu11",
    "-fPIC",
    "-pthread",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
)
UNITS: dict[str, tuple[str, ...]] = {
    "kl_rows.c": ("-O2", "-ffp-contract=fast", "-Wno-psabi"),  # first: it takes longest; its vectors are explicit
    "parallel.c": (),
    "blockwise4bit.c": ("-ffp-contract=off",),  # its bits must match bitsandbytes': every product is rounded
    "sweep.c": ("-ffp-contract=off", "-ftree-vectorize"),  # contracted, a rounding border would move by a bit
    "grid_weight.c": ("-ffp-contract=off", "-ftree-vectorize"),  # a weight is the sum that is stored, rounded twice
    "int8.c": ("-ffp-contract=off",),  # as above
    "rms_norm.c": ("-ffp-contract=off", "-ftree-vectorize"),
    "linear4bit.c": ("-ffp-contract=fast",),
}
COMPILERS = ("cc", "gcc", "clang")


class NativeBuildError(RuntimeError):
    """The C library cannot be built or loaded here; the message says why."""


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    chosen = os.environ.get("COMPRESS_CACHE")
    if chosen:
        return Path(chosen) / "kernels"
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "compress" / "kernels"


def find_compiler() -> list[str]:
    """The command of a C compiler: `CC` if set ("ccache gcc" too), else the first of cc, gcc, clang.

    Raises NativeBuildError.
    """
    chosen = os.environ.get("CC")
    for name, *more in [shlex.split(chosen)] if chosen else [[name] for name in COMPILERS]:
        path = shutil.which(name)
        if path:
            return [path, *more]
    raise NativeBuildError(f"no C compiler found (tried {chosen or ', '.join(COMPILERS)})")


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=300)
    except subprocess.CalledProcessError as error:
        detail = (error.stderr or "").strip().splitlines()
        reason = detail[0] if detail else f"status {error.returncode}"
        raise NativeBuildError(f"{command[0]} failed: {reason}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeBuildError(f"{command[0]} failed: {error}") from error
    return done.stdout


def _name_of_sources() -> str:
    """Of a library of these sources for this architecture, whatever compiler made it."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    digest.update(repr((COMMON_FLAGS, sorted(UNITS.items()), platform.machine())).encode())
    return f"compress_kernels-{digest.hexdigest()[:20]}"


def _library_path(compiler: list[str]) -> Path:
    made_by = hashlib.sha256(repr((compiler, _run([*compiler, "--version"]))).encode()).hexdigest()
    return cache_folder() / f"{_name_of_sources()}-{made_by[:12]}.so"


def build_library() -> Path:
    """The compiled library's path, built now if the cache does not hold it. Raises NativeBuildError.

    Without a compiler, one that another compiler has made of the same sources will do: an image may be built where
    there is one, and run where there is none.
    """
    try:
        compiler = find_compiler()
    except NativeBuildError:
        made = sorted(cache_folder().glob(f"{_name_of_sources()}-*.so"))
        if not made:
            raise
        return made[-1]
    target = _library_path(compiler)
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return _build(compiler, target)
    except OSError as error:
        raise NativeBuildError(f"cannot keep compiled kernels ({error}): set COMPRESS_CACHE to a folder") from error


def _build(compiler: list[str], target: Path) -> Path:
    with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as folder:
        objects = [str(Path(folder) / f"{unit}.o") for unit in UNITS]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # each waits for a compiler of its own
            commands = (
                [*compiler, *COMMON_FLAGS, *flags, "-c", str(SOURCES / unit), "-o", to]
                for (unit, flags), to in zip(UNITS.items(), objects, strict=True)
            )
            list(pool.map(_run, commands))
        built = Path(folder) / "library.so"
        _run([*compiler, "-shared", "-pthread", *objects, "-o", str(built), "-lm"])
        built.replace(target)
    return target


@cache
def load_library() -> ctypes.CDLL:
    """The loaded library, told of torch's OpenMP runtime if the process has one. Raises NativeBuildError."""
    path = build_library()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeBuildError(f"cannot load {path} ({error}): set COMPRESS_CACHE to another folder") from error
    # torch loads its OpenMP runtime with global symbols; sharing it avoids a second pool fighting for the same cores.
    parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    if parallel is not None:
        library.ck_set_gomp_parallel(ctypes.cast(parallel, ctypes.c_void_p))
    return library
