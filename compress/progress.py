"""Bars with time left for everything long, on a terminal; plain lines where there is none."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from compress.stage import Advance

log = logging.getLogger("compress")

SILENCE = 30.0
"""Seconds after which a log file hears how far a long step is."""
STILL = 120.0
"""And after which it hears that a step is still at work which cannot say how far it is."""


class Terminal:
    """Progress by rich, on standard error: standard output stays for the result."""

    def __init__(self, prefix: str = "", bars: bool = True) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
        self.prefix = prefix
        """In front of every line: which run of a sweep it is about."""
        self.bars = bars and self.console.is_terminal
        """Bars of several processes on one terminal would overwrite each other."""

    @contextmanager
    def bar(self, description: str, total: float) -> Iterator[Advance]:
        """A bar that goes away when it is full; the line that stays says how long it took."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        label = f"{self.prefix}{description}"
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        begin = time.monotonic()
        with Progress(*columns, console=self.console, transient=True, disable=not self.bars) as progress:
            task = progress.add_task(label, total=total)
            if self.bars:
                yield lambda units: progress.advance(task, units)
            else:
                lines = Lines(label, total, self.console.print)
                with lines.heard_of():
                    yield lines
        seconds = time.monotonic() - begin
        log.info("%s: %.1f s", label, seconds)
        if seconds >= 2:
            self.console.print(Text.assemble(f"  {label} ", (f"{seconds:.0f} s", "dim")))

    def say(self, message: str) -> None:
        """One line that stays."""
        log.info(message)
        self.console.print(f"  {self.prefix}{message}", markup=False)

    def title(self, message: str) -> None:
        """One line that stands out."""
        log.info(message)
        self.console.print(message, style="bold", markup=False)


class Lines:
    """Where there is no terminal: now and then a line that says how far a step is and how long it will take."""

    def __init__(self, label: str, total: float, show: Callable[[str], object]) -> None:
        self.label, self.total, self.show = label, total, show
        self.done = 0.0
        self.begin = self.last = time.monotonic()
        self.first: float | None = None
        """What was done before this process began, as a resumed step says at once."""

    def __call__(self, units: float) -> None:
        """`units` more are done."""
        now = time.monotonic()
        self.done += units
        if self.first is None:
            self.first = units if now - self.begin < 1 else 0.0
        new = self.done - self.first
        if now - self.last >= SILENCE and new > 0 and self.done < self.total:
            self.last = now
            left = (now - self.begin) / new * (self.total - self.done)
            self.show(f"  {self.label}: {self.done:.0f} of {self.total:.0f}, {left:.0f} s left")

    @contextmanager
    def heard_of(self) -> Iterator[None]:
        """While it is open, a step that says nothing for long is said to be at work still, by a thread."""
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(over,), daemon=True)
        watch.start()
        try:
            yield
        finally:
            over.set()
            watch.join()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(STILL / 10):
            self.still()

    def still(self) -> None:
        """Say so, where nothing was said for long."""
        now = time.monotonic()
        if now - self.last >= STILL:
            self.last = now
            self.show(f"  {self.label}: at work since {now - self.begin:.0f} s")
