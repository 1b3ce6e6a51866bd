"""Files that are there whole or not at all, after a crash too, and folders that one process has at a time.

What systems do not have in common is settled here: Windows makes durable only what is open for writing, cannot open a
folder and cannot delete a file that is held; some network and shared file systems can neither sync a folder nor lock.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger("compress")

WINDOWS = os.name == "nt"
CANNOT_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS})
CANNOT_LOCK = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})


def write_atomically(file: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    temporary.replace(file)


def sync_file(file: Path) -> None:
    """Make what `file` holds durable."""
    with file.open("r+b" if WINDOWS else "rb") as opened:
        os.fsync(opened.fileno())


def sync_tree(folder: Path) -> None:
    """Make every file below `folder` durable, and its entries."""
    for file in folder.rglob("*"):
        if file.is_file():
            sync_file(file)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make the entries of one folder durable, where a folder can be synced."""
    if WINDOWS:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise
    finally:
        os.close(handle)


def readable_as_others(*files: Path) -> None:
    """Give files the rights that any new file gets: safetensors writes through a temporary one that its owner alone may
    read, and a cache or an artifact is read by others too."""
    mask = os.umask(0)
    os.umask(mask)
    for file in files:
        with suppress(PermissionError):  # another's, in a shared cache
            file.chmod(0o666 & ~mask)


@contextmanager
def held(file: Path, timeout: float = -1, remove: bool = False) -> Iterator[None]:
    """Hold the lock `file` against other processes; where the file system has no locks, go on without.

    Args:
        file: made if need be.
        timeout: seconds to wait for another process; -1 as long as it takes.
        remove: delete the file at the end.

    Raises:
        TimeoutError: another process holds it.
    """
    from filelock import FileLock

    lock = FileLock(file, timeout=timeout)
    try:
        lock.acquire()
    except OSError as error:  # also filelock's Timeout, which has no errno
        if error.errno not in CANNOT_LOCK:
            raise
        logger.warning("%s cannot be locked (%s): two runs at once would write over each other", file, error)
    try:
        yield
    finally:
        if remove and not WINDOWS:
            file.unlink(missing_ok=True)
        lock.release()
        if remove and WINDOWS:
            with suppress(OSError):
                file.unlink()
