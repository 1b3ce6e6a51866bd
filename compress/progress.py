"""Bars with time left for everything long, on a terminal; plain lines where there is none."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from compress.stage import Advance

log = logging.getLogger("compress")


class Terminal:
    """Progress by rich, on standard error: standard output stays for the result."""

    def __init__(self, prefix: str = "", bars: bool = True) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.prefix = prefix
        """In front of every line: which run of a sweep it is about."""
        self.bars = bars and self.console.is_terminal
        """Bars of several processes on one terminal would overwrite each other."""

    @contextmanager
    def bar(self, description: str, total: float) -> Iterator[Advance]:
        """A bar that goes away when it is full; the line that stays says how long it took."""
        import time

        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        label = f"{self.prefix}{description}"
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        begin = time.monotonic()
        with Progress(*columns, console=self.console, transient=True, disable=not self.bars) as progress:
            task = progress.add_task(label, total=total)
            yield lambda units: progress.advance(task, units)
        seconds = time.monotonic() - begin
        log.info("%s: %.1f s", label, seconds)
        if seconds >= 2:
            self.console.print(f"  {label} [dim]{seconds:.0f} s[/dim]")

    def say(self, message: str) -> None:
        """One line that stays."""
        log.info(message)
        self.console.print(f"  {self.prefix}{message}", markup=False)

    def title(self, message: str) -> None:
        """One line that stands out."""
        log.info(message)
        self.console.print(message, style="bold", markup=False)
