"""The console's back end: a ring of bytes each way in one page, and a port to tell each other (io/console.h).

Room: `paravirt/xen`. Indexes that the guest wrote are not trusted: a ring that claims more than it holds is read as
full.
"""

from __future__ import annotations

from collections.abc import Callable

from paravirt.xen.events import EventChannels
from paravirt.xen.public import ConsoleRing


class Console:
    """The hypervisor's end of a guest's console."""

    def __init__(self, events: EventChannels, write: Callable[[bytes], None]) -> None:
        """`write` gets what the guest prints."""
        self.connect(memoryview(bytearray(4096)))
        self._events = events
        self._write = write
        self._input = bytearray()
        self.port = events.allocate_backend(0, self.kicked)

    def connect(self, page: memoryview) -> None:
        """The page that is shared with the guest."""
        self._page = page
        self._words = page.cast("I")

    def kicked(self) -> None:
        """The guest has printed, or has read."""
        words = self._words
        consumed = words[ConsoleRing.OUTPUT_CONSUMED >> 2]
        produced = words[ConsoleRing.OUTPUT_PRODUCED >> 2]
        count = min(produced - consumed & 0xFFFF_FFFF, ConsoleRing.OUTPUT_SIZE)
        if count:
            start = consumed % ConsoleRing.OUTPUT_SIZE
            ring = self._page[ConsoleRing.OUTPUT : ConsoleRing.OUTPUT + ConsoleRing.OUTPUT_SIZE]
            data = bytes(ring[start : start + count])
            data += bytes(ring[: count - len(data)])
            words[ConsoleRing.OUTPUT_CONSUMED >> 2] = produced
            self._write(data)
            if count == ConsoleRing.OUTPUT_SIZE:
                self._events.set_pending(self.port)  # it may wait for room
        if self._input:
            self._offer()

    def feed(self, data: bytes) -> None:
        """Bytes for the guest to read; what the ring has no room for waits."""
        self._input += data
        self._offer()

    def _offer(self) -> None:
        words = self._words
        produced = words[ConsoleRing.INPUT_PRODUCED >> 2]
        used = min(produced - words[ConsoleRing.INPUT_CONSUMED >> 2] & 0xFFFF_FFFF, ConsoleRing.INPUT_SIZE)
        piece = self._input[: ConsoleRing.INPUT_SIZE - used]
        if not piece:
            return
        del self._input[: len(piece)]
        for number, byte in enumerate(piece):
            self._page[ConsoleRing.INPUT + (produced + number) % ConsoleRing.INPUT_SIZE] = byte
        words[ConsoleRing.INPUT_PRODUCED >> 2] = produced + len(piece) & 0xFFFF_FFFF
        self._events.set_pending(self.port)

    @property
    def unread(self) -> int:
        """Bytes that the guest has not read."""
        words = self._words
        waiting = words[ConsoleRing.INPUT_PRODUCED >> 2] - words[ConsoleRing.INPUT_CONSUMED >> 2] & 0xFFFF_FFFF
        return len(self._input) + min(waiting, ConsoleRing.INPUT_SIZE)

    @property
    def listening(self) -> bool:
        """The guest takes events of the console."""
        return not self._events.is_masked(self.port)
