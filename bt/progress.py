"""Progress on a terminal, for what takes longer than a second; nothing at all anywhere else.

Room: `bt`. A stage says what is being done and, where that is known, how much of it there is. Nothing is shown unless
stderr is a terminal and a second has passed, and nothing is left on the screen. One stage is shown at a time: a stage
within a stage belongs to the outer one.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

DELAY: Final = 1.0
"""Seconds before anything is shown."""

_current: _Stage | None = None


@contextmanager
def stage(title: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
    """While the block runs its progress is shown; the value given is called with the amount of `total` just done."""
    global _current
    if _current is not None or not _on_terminal():
        yield _nothing
        return
    _current = _Stage(title, total)
    try:
        yield _current.advance
    finally:
        shown, _current = _current, None
        shown.close()


def _nothing(amount: float) -> None:
    """Progress that nobody sees."""


def _on_terminal() -> bool:
    """Whether stderr is a terminal that can show a bar."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM", "") != "dumb"


class _Stage:
    """A bar that appears when its time has come."""

    def __init__(self, title: str, total: float | None) -> None:
        self.title = title
        self._total = total
        self._done = 0.0
        self._lock = threading.Lock()
        self._bar: tuple[Progress, TaskID] | None = None
        self._closed = False
        self._timer = threading.Timer(DELAY, self._show)
        self._timer.daemon = True
        self._timer.start()

    def advance(self, amount: float) -> None:
        """So much more is done."""
        self._done += amount
        bar = self._bar
        if bar is not None:
            bar[0].update(bar[1], completed=self._done)

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        measured = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn()) if self._total else (TimeElapsedColumn(),)
        text = TextColumn("{task.description}", markup=False)
        progress = Progress(SpinnerColumn(), text, *measured, console=Console(stderr=True), transient=True)
        with self._lock:
            if not self._closed:
                self._bar = progress, progress.add_task(self.title, total=self._total, completed=int(self._done))
                progress.start()

    def close(self) -> None:
        """Take the bar off the screen."""
        self._timer.cancel()
        with self._lock:
            self._closed = True
        if self._bar is not None:
            self._bar[0].stop()
