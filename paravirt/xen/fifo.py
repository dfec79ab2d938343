"""Event channels in queues: a word for each port, linked by priority in the order in which events came.

Room: `paravirt/xen`. The interface of event_channel.h that takes the place of the two-level bitmaps when a guest asks
for it. Words and heads are in the guest's own pages, so nothing that is read from them is used as an index: a guest
that writes nonsense loses its own events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

QUEUES: Final = 16
DEFAULT_PRIORITY: Final = 7
LINK_BITS: Final = 17
MOST_PORTS: Final = 1 << LINK_BITS
WORDS: Final = 1024
"""Words in a page."""
CONTROL_SIZE: Final = 72
PENDING, MASKED, LINKED = 1 << 31, 1 << 30, 1 << 29
_LINK: Final = MOST_PORTS - 1
_BUSY: Final = 1 << 28


class Fifo:
    """The queues of one virtual CPU."""

    def __init__(self, view: memoryview, control_at: int, mark: Callable[[], None]) -> None:
        """`control_at`: machine address of the guest's control block; `mark` tells the guest to look."""
        self._words = view.cast("I")
        self._control = control_at >> 2
        self._mark = mark
        self.frames: list[int] = []
        """Machine frames with the words."""
        self._early: set[int] = set()
        """Ports that were pending before they had a word."""
        self._tails = [0] * QUEUES
        self._last: dict[int, int] = {}
        """The queue that each port was put into last."""
        self.priorities: dict[int, int] = {}

    def _place(self, port: int) -> int | None:
        page = port // WORDS
        return self.frames[page] * WORDS + port % WORDS if page < len(self.frames) else None

    def expand(self, frame: int) -> None:
        """The next ports have their words in a machine frame."""
        self.frames.append(frame)
        known = len(self.frames) * WORDS
        for port in sorted(port for port in self._early if port < known):
            self._early.discard(port)
            self.set_pending(port)

    def set_pending(self, port: int) -> bool:
        """An event comes at a port; whether none was waiting there."""
        place = self._place(port)
        if place is None:
            new = port not in self._early
            self._early.add(port)
            return new
        words = self._words
        before = words[place]
        words[place] = before | PENDING
        if not before & (MASKED | LINKED):
            self._queue(port, place)
        return not before & PENDING

    def _queue(self, port: int, place: int) -> None:
        words = self._words
        queue = self.priorities.get(port, DEFAULT_PRIORITY)
        words[place] = words[place] & ~(_LINK | _BUSY) | LINKED
        tail = self._tails[queue]
        linked = False
        if tail and tail != port and self._last.get(tail) == queue:
            behind = self._place(tail)
            if behind is not None and words[behind] & LINKED:  # else the guest has taken it: the queue is empty
                words[behind] = words[behind] & ~_LINK | port
                linked = True
        self._tails[queue] = port
        self._last[port] = queue
        if linked:
            return
        words[self._control + 2 + queue] = port
        if not words[self._control] >> queue & 1:
            words[self._control] |= 1 << queue
            self._mark()

    def unmask(self, port: int) -> None:
        """Take a port's mask away, and queue what waited behind it."""
        place = self._place(port)
        if place is None:
            return
        words = self._words
        words[place] &= ~MASKED
        if words[place] & PENDING:
            self.set_pending(port)

    def clear(self, port: int) -> None:
        """A port is closed: nothing waits there."""
        self._early.discard(port)
        self.priorities.pop(port, None)
        place = self._place(port)
        if place is not None:
            self._words[place] &= ~PENDING

    def is_masked(self, port: int) -> bool:
        """Whether the guest has a port masked; one without a word is."""
        place = self._place(port)
        return place is None or self._words[place] & MASKED != 0

    def is_pending(self, port: int) -> bool:
        """Whether an event waits."""
        place = self._place(port)
        return port in self._early if place is None else self._words[place] & PENDING != 0
