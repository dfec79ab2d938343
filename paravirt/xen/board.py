"""What a Xen guest finds of a machine: a console, time, and ports at which nothing is.

Room: `paravirt/xen`. A board in the machine's sense (`emulator.board.board`): it requests the CPU when an event waits,
and says when the next one can come. There are no device registers in memory and no interrupt controllers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from emulator.board.board import Shutdown
from emulator.board.pc import START_DATE
from emulator.bus import MemoryBus, PortBus
from emulator.clock import Clock
from emulator.memory import GuestMemory
from emulator.platforms import Platform
from paravirt.xen.console import Console

TIMER_PORTS: Final = (0x40, 0x41, 0x42, 0x43, 0x61)
"""The PC's interval timer and the gate of its channel 2."""


class StoppedTimer:
    """A port that reads as zero, whatever is written: a kernel that times its processor by it gives up at once."""

    def __init__(self, port: int) -> None:
        self.name = f"timer port {port:#x}"

    def read(self, _offset: int, _size: int) -> int:
        """Zero."""
        return 0

    def write(self, _offset: int, _size: int, _value: int) -> None:
        """Nothing."""

    @property
    def state(self) -> None:
        """None."""
        return None

    def restore(self, _state: None) -> None:
        """Nothing."""


class Line:
    """The console as whoever types into it sees it."""

    def __init__(self) -> None:
        self.console: Console | None = None

    @property
    def listening(self) -> bool:
        """The guest reads."""
        return self.console is not None and self.console.listening

    @property
    def unread(self) -> int:
        """Bytes that wait for the guest."""
        return 0 if self.console is None else self.console.unread


class XenBoard:
    """The board of one guest."""

    def __init__(self, memory: GuestMemory, clock: Clock, console: Callable[[bytes], None]) -> None:
        self.memory = memory
        self.clock = clock
        self.console = console
        self.intr = False
        """An event waits for the guest."""
        self.on_interrupt: Callable[[bool], None] | None = None
        self.shutdown: Shutdown | None = None
        self.start_date = START_DATE
        self.mmio = MemoryBus()
        self.com1 = Line()
        """The console's line, by the name that other boards have for it."""
        self.ports = PortBus()
        """All ones at every port, but for the timer's, which reads as zero and never counts."""
        for port in TIMER_PORTS:
            self.ports.insert(port, 1, StoppedTimer(port))

    @property
    def device_space(self) -> tuple[tuple[int, int], ...]:
        """None: no entry of a guest's tables leads outside its memory."""
        return ()

    def next_wake(self) -> int | None:
        """Virtual time in nanoseconds of the next event that can request the CPU."""
        return self.clock.next_event()

    def idle(self) -> bool:
        """The CPU waits: let time jump to the next event, which may be one that the guest has masked; False when only
        input can wake it."""
        when = self.next_wake()
        if when is None:
            return False
        self.clock.skip_to(when)
        self.clock.run_due()
        return True

    def feed_console(self, data: bytes) -> None:
        """Bytes arrive at the console."""
        if self.com1.console is not None:
            self.com1.console.feed(data)

    def end(self, shutdown: Shutdown) -> None:
        """The guest ends its run."""
        if self.shutdown is None:
            self.shutdown = shutdown

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the state of clock and devices."""
        return hashlib.sha256(repr((self.clock.state, self.shutdown)).encode()).hexdigest()


def _place(_board: object, _memory: GuestMemory, _image: object) -> None:
    raise NotImplementedError("a Xen guest is placed by the domain builder")


XEN_PV = Platform("x86-64", "xen", XenBoard, _place)
"""The platform of Xen guests; the domain builder (`paravirt.xen.builder`) puts the kernel into memory."""
