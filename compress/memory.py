"""How much memory this process holds itself: anonymous pages, mapped files not counted."""

from __future__ import annotations

import ctypes
import gc
import threading
from contextlib import suppress
from types import TracebackType

PERIOD = 0.05


def anonymous_bytes() -> int:
    """Anonymous resident memory of this process now; all resident memory where the system does not tell them apart."""
    try:
        with open("/proc/self/status") as status:  # noqa: PTH123 - read twenty times a second
            for line in status:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    import psutil

    return int(psutil.Process().memory_info().rss)


def release() -> None:
    """Give back what is free: glibc keeps the pages of freed tensors, which would count for whatever runs next."""
    gc.collect()
    # another C library has no such call and nothing to give back
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class PeakMemory:
    """Samples `anonymous_bytes` while the `with` block runs, from what is really held when it begins."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._stop.wait(PERIOD):
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes())

    def __enter__(self) -> PeakMemory:
        release()
        self.peak_bytes = anonymous_bytes()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.peak_bytes = max(self.peak_bytes, anonymous_bytes())
