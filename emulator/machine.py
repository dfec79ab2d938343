"""The machine: an engine, memory, a clock and a board, and the ways a run can end.

Room: `emulator`. A `Machine` does not know whether it is virtualised. Who drives the CPU, the
reference (`emulator.native`) or a hypervisor, is given the machine and returns an `Outcome`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from emulator.board.boot import BootImage
from emulator.board.linux_boot import EntryState, place
from emulator.board.pc import Pc, ShutdownKind
from emulator.clock import Clock
from emulator.engine.engines import X86_ENGINES
from emulator.engine.x86 import X86Engine
from emulator.isa.x86.walk import PHYSICAL_BITS
from emulator.memory import GuestMemory

BLOCKS_PER_SECOND = 100_000_000
"""Basic blocks that are one second of virtual time: about a 500 MHz processor."""

SEED = bytes(range(32))
"""What the boot protocol hands to the guest's random number generator: the same in every run."""

_DEVICE_SPACE_END = 1 << PHYSICAL_BITS


class EndKind(Enum):
    """How a run ended."""

    POWER_OFF = "power-off"
    RESET = "reset"
    DEBUG_EXIT = "debug-exit"
    HALTED = "halted"
    TRIPLE_FAULT = "triple-fault"
    GUEST_TIMEOUT = "guest-timeout"
    HOST_TIMEOUT = "host-timeout"
    INTERRUPTED = "interrupted"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a run."""

    kind: EndKind
    status: int = 0
    """Exit status the guest asked for."""
    detail: str = ""
    """One clause for people."""

    @property
    def clean(self) -> bool:
        """The guest ended by its own will."""
        return self.kind in (EndKind.POWER_OFF, EndKind.RESET, EndKind.DEBUG_EXIT, EndKind.HALTED)


@dataclass(frozen=True, slots=True)
class Limits:
    """When to end a run that does not end by itself."""

    guest_seconds: float | None = None
    """Virtual time."""
    host_seconds: float | None = None
    """Wall-clock time of this process."""


class Machine:
    """One machine of `memory_size` bytes (a multiple of 4 KiB)."""

    SLICE = 2_000_000
    """Most blocks between two looks at the limits and at the console's input."""
    EXITS = 10_000
    """Most exits between two looks at the limits."""

    def __init__(
        self,
        memory_size: int,
        console: Callable[[bytes], None],
        *,
        blocks_per_second: int = BLOCKS_PER_SECOND,
        limits: Limits | None = None,
        engine: Callable[[], X86Engine] = X86_ENGINES["unicorn"],
    ) -> None:
        self.memory = GuestMemory(memory_size)
        self.engine = engine()
        self.engine.map_memory(0, self.memory.view)
        self.clock = Clock(lambda: self.engine.progress, blocks_per_second)
        self.board = Pc(self.memory, self.clock, console=console)
        self.limits = limits or Limits()
        self.poll_input: Callable[[float], bytes | None] | None = None
        """Gives console input, waiting at most so many seconds; None at its end."""
        self.stop_when: Callable[[], bool] | None = None
        """Asked at every slice: whether to end the run."""
        self._host_deadline: float | None = None
        self._map_device_space(memory_size)

    def _map_device_space(self, memory_size: int) -> None:
        """Everything that is not memory, as far as the processor's addresses go, is the memory bus."""
        mmio, size = self.board.mmio, _DEVICE_SPACE_END - memory_size

        def read(offset: int, width: int) -> int:
            return mmio.read(memory_size + offset, width)

        def write(offset: int, width: int, value: int) -> None:
            mmio.write(memory_size + offset, width, value)

        self.engine.map_mmio(memory_size, size, read, write)

    def place(self, image: BootImage) -> EntryState:
        """Put a kernel into memory; says how to enter it. Raises `BootError`."""
        return place(self.memory, image, mp_table=True, seed=SEED)

    def begin(self) -> None:
        """A run begins: its host time counts from now."""
        seconds = self.limits.host_seconds
        self._host_deadline = None if seconds is None else time.monotonic() + seconds

    def arm(self) -> None:
        """Have the engine come back at the clock's next event, the guest's time limit, or the end of a slice."""
        engine, clock = self.engine, self.clock
        slice_end = engine.progress + self.SLICE
        event = clock.next_event()
        if event is not None:
            slice_end = min(slice_end, clock.progress_at(event))
        if self.limits.guest_seconds is not None:
            slice_end = min(slice_end, clock.progress_at(int(self.limits.guest_seconds * 1e9)))
        engine.set_deadline(slice_end)

    def over(self) -> Outcome | None:
        """Whether the run ends here: the guest shut down, or a limit is reached."""
        shutdown = self.board.shutdown
        if shutdown is not None:
            kind = {
                ShutdownKind.POWER_OFF: EndKind.POWER_OFF,
                ShutdownKind.RESET: EndKind.RESET,
                ShutdownKind.DEBUG_EXIT: EndKind.DEBUG_EXIT,
            }[shutdown.kind]
            return Outcome(kind, shutdown.status)
        limits = self.limits
        if limits.guest_seconds is not None and self.clock.now() >= limits.guest_seconds * 1e9:
            return Outcome(EndKind.GUEST_TIMEOUT, detail=f"{limits.guest_seconds:g} s of guest time")
        if self._host_deadline is not None and time.monotonic() >= self._host_deadline:
            return Outcome(EndKind.HOST_TIMEOUT, detail=f"{limits.host_seconds:g} s of host time")
        if self.stop_when is not None and self.stop_when():
            return Outcome(EndKind.STOPPED)
        return None

    def tick(self) -> None:
        """Run what is due and take console input."""
        self.clock.run_due()
        if self.poll_input is not None:
            data = self.poll_input(0.0)
            if data:
                self.board.feed_console(data)
            elif data is None:
                self.poll_input = None

    def idle(self) -> bool:
        """The CPU waits for an interrupt: let time pass to the next interrupt. False when none can come."""
        if self.poll_input is None:
            return self.board.idle()
        wake = self.board.next_wake()
        wait = 0.05 if wake is None else min(0.05, max(0.0, (wake - self.clock.now()) / 1e9))
        data = self.poll_input(wait)
        if data:
            self.board.feed_console(data)
        elif data is None:
            self.poll_input = None
        if wake is not None:
            self.board.idle()
        return True

    def close(self) -> None:
        """Release the engine."""
        self.engine.close()
