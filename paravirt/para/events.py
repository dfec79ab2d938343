"""Events in the place of interrupts: which ports are pending, the virtual timer, and what was typed.

Room: `paravirt/para`. `Channels` stands before the machine's board: it requests the CPU for the guest's ports and not
for the board's devices, whose lines a para-virtual guest does not see. Pending ports are a word that the guest can
read; whatever it writes there, it sends to itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emulator.board.board import Board, Shutdown
from emulator.clock import Clock, Timer
from paravirt.abi.guests import MASK_OFFSET, PORTS, Port

_ALL = (1 << PORTS) - 1
MOST_TYPED = 1 << 16
"""Bytes of console input that wait at most; what comes beyond them is lost, as on a serial line."""


class Channels:
    """The events of one guest, as its machine's board."""

    def __init__(self, board: Board, clock: Clock) -> None:
        self._board = board
        self._clock = clock
        self._timer: Timer | None = None
        self._period = 0
        self._typed = bytearray()
        self._shared: memoryview
        self._pending = self._mask = 0
        self.on_interrupt: Callable[[bool], None] | None = None
        self.shutdown: Shutdown | None = None

    def __getattr__(self, name: str) -> Any:
        """What else the board has is as it was."""
        return getattr(self._board, name)

    def attach(self, shared: memoryview, pending: int, word: int) -> None:
        """Where the guest sees its events: the shared page as words of `word` bytes, and the index of the pending
        ones."""
        self._shared, self._pending, self._mask = shared, pending, MASK_OFFSET // word

    # -- what a board offers --------------------------------------------------------------------

    @property
    def intr(self) -> bool:
        """An event is pending that the guest has not masked."""
        shared = self._shared
        return shared[self._pending] & ~shared[self._mask] & _ALL != 0

    def next_wake(self) -> int | None:
        """When the timer is due."""
        timer = self._timer
        return timer.when if timer is not None and timer.callback is not None else None

    def idle(self) -> bool:
        """The guest waits: let time jump to the timer. False where it is not set."""
        wake = self.next_wake()
        if wake is None:
            return False
        self._clock.skip_to(wake)
        self._clock.run_due()
        return True

    def feed_console(self, data: bytes) -> None:
        """Something was typed."""
        self._typed += data[: MOST_TYPED - len(self._typed)]
        self.send(Port.CONSOLE)

    def digest(self) -> str:
        """That of the board behind."""
        return self._board.digest()

    # -- what the guest asks for ----------------------------------------------------------------

    def send(self, port: int) -> None:
        """Make a port pending."""
        self._shared[self._pending] |= 1 << port

    def take(self) -> int:
        """The ports that are delivered now: they are not pending any more."""
        shared = self._shared
        pending = shared[self._pending]
        taken: int = pending & ~shared[self._mask] & _ALL
        shared[self._pending] = pending & ~taken & _ALL
        return taken

    def typed(self, size: int) -> bytes:
        """What was typed, at most so many bytes, which are gone then."""
        data = bytes(self._typed[:size])
        del self._typed[:size]
        return data

    @property
    def waiting(self) -> bytes:
        """What was typed and not asked for yet."""
        return bytes(self._typed)

    @property
    def period(self) -> int:
        """Of the timer, in nanoseconds; 0 where it is due once."""
        return self._period

    def restore_events(self, timer: int | None, period: int, typed: bytes) -> None:
        """Take up an earlier state, the clock's callbacks forgotten; what is pending is in the shared page."""
        self._typed[:] = typed
        self._period = period
        self._timer = None if timer is None else self._clock.at(timer, self._due)

    def set_timer(self, nanoseconds: int, periodic: bool) -> None:
        """Set or stop the timer; a request of before is taken back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._shared[self._pending] &= ~(1 << Port.TIMER) & _ALL
        self._period = nanoseconds if periodic else 0
        if nanoseconds:
            self._timer = self._clock.at(self._clock.now() + nanoseconds, self._due)

    def _due(self) -> None:
        self.send(Port.TIMER)
        timer, self._timer = self._timer, None
        if self._period and timer is not None:
            # A period that was slept through is not made up for.
            when = max(timer.when + self._period, self._clock.now() + 1)
            self._timer = self._clock.at(when, self._due)
