"""The machine: an engine, memory, a clock and a board, and the ways a run can end.

Room: `emulator`. A `Machine` does not know whether it is virtualised. Who drives the CPU, the
reference (`emulator.native`) or a hypervisor, is given the machine and returns an `Outcome`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from emulator.board.board import Board, ShutdownKind
from emulator.board.boot import BootError, BootImage
from emulator.clock import Clock
from emulator.engine.engines import open_engine
from emulator.engine.protocol import Engine
from emulator.memory import GuestMemory
from emulator.platforms import PLATFORMS, Platform


class EndKind(Enum):
    """How a run ended."""

    POWER_OFF = "power-off"
    RESET = "reset"
    DEBUG_EXIT = "debug-exit"
    HALTED = "halted"
    TRIPLE_FAULT = "triple-fault"
    CRASHED = "crashed"
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

    @property
    def final(self) -> bool:
        """The guest does not go on from here: it was not merely stopped."""
        return self.kind not in (EndKind.INTERRUPTED, EndKind.STOPPED)


@dataclass(frozen=True, slots=True)
class Limits:
    """When to end a run that does not end by itself."""

    guest_seconds: float | None = None
    """Virtual time."""
    host_seconds: float | None = None
    """Wall-clock time of this process."""


_ENDS = {
    ShutdownKind.POWER_OFF: EndKind.POWER_OFF,
    ShutdownKind.RESET: EndKind.RESET,
    ShutdownKind.DEBUG_EXIT: EndKind.DEBUG_EXIT,
}


class Machine:
    """One machine of `memory_size` bytes (a multiple of 4 KiB)."""

    SLICES = 50
    """Looks at the limits and at the console's input in a second of virtual time, at least."""
    WAIT = 0.05
    """Most seconds of one wait for input."""
    EXITS = 10_000
    """Most exits between two looks at the limits."""

    def __init__(
        self,
        memory_size: int,
        console: Callable[[bytes], None],
        *,
        platform: Platform = PLATFORMS["x86-64"],
        engine: Callable[[], Engine] | None = None,
        limits: Limits | None = None,
        units_per_second: int | None = None,
        memory: GuestMemory | None = None,
    ) -> None:
        """`memory`: that of another machine, which this one shares. `engine` opens the CPU (its instruction set's
        default without); `units_per_second` of its progress are a second of virtual time (as its capabilities say
        without)."""
        self.platform = platform
        self.console = console
        """Gets what the guest prints."""
        self.engine: Any = open_engine(platform.isa) if engine is None else engine()
        """The CPU: an engine of the platform's instruction set, which its drivers know by its own protocol."""
        self.memory = GuestMemory(memory_size, platform.memory_base) if memory is None else memory
        self.engine.map_memory(platform.memory_base, self.memory.view)
        running: Engine = self.engine
        units = units_per_second or self.engine.capabilities.progress_per_second
        self.clock = Clock(lambda: running.progress, units)
        self._slice = max(1, units // self.SLICES)
        self.board: Any = platform.make_board(self.memory, self.clock, console)
        """The board, which its platform's drivers know by its own type."""
        self.after_device_write: Callable[[], None] = lambda: None
        """Called when a device has taken a value by the memory bus: its next event may be another now."""
        self.limits = limits or Limits()
        self.poll_input: Callable[[float], bytes | None] | None = None
        """Gives console input, waiting at most so many seconds; None at its end."""
        self.real_time = False
        """Time that the guest waits passes as the host's does, since somebody outside may answer it; else it jumps."""
        self.stop_when: Callable[[], bool] | None = None
        """Asked at every slice: whether to end the run."""
        self._host_deadline: float | None = None
        self._map_device_space(self.board)

    def _map_device_space(self, board: Board) -> None:
        """Route what the board says to its memory bus."""
        for start, size in board.device_space:
            self._map_devices(board, start, size)

    def _map_devices(self, board: Board, start: int, size: int) -> None:
        mmio = board.mmio

        def read(offset: int, width: int) -> int:
            return mmio.read(start + offset, width)

        def write(offset: int, width: int, value: int) -> None:
            mmio.write(start + offset, width, value)
            self.after_device_write()

        self.engine.map_mmio(start, size, read, write)

    def place(self, image: BootImage) -> Any:
        """Put a kernel into memory; says how to enter it, in the platform's own terms. Raises `BootError`."""
        order = getattr(self.engine, "byte_order", "little")
        if image.byte_order != order:
            raise BootError(
                f"the kernel is {image.byte_order}-endian, and the machine's processor was opened {order}-endian; "
                "open one of the kernel's byte order"
            )
        return self.platform.place(self.board, self.memory, image)

    def begin(self) -> None:
        """A run begins: its host time counts from now."""
        seconds = self.limits.host_seconds
        self._host_deadline = None if seconds is None else time.monotonic() + seconds

    def arm(self) -> None:
        """Have the engine come back at the clock's next event, the guest's time limit, or the end of a slice."""
        engine, clock = self.engine, self.clock
        slice_end = engine.progress + self._slice
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
            return Outcome(_ENDS[shutdown.kind], shutdown.status)
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
        self.take_input(0.0)

    def idle(self) -> bool:
        """The CPU waits for an interrupt: let time pass to the next interrupt. False when none can come."""
        if self.poll_input is None:
            return bool(self.board.idle())
        wake, now = self.board.next_wake(), self.clock.now()
        began = time.monotonic()
        self.take_input(self.WAIT if wake is None else min(self.WAIT, max(0.0, (wake - now) / 1e9)))
        if self.real_time:
            passed = now + int((time.monotonic() - began) * 1e9)
            self.clock.skip_to(passed if wake is None else min(wake, passed))
            self.clock.run_due()
        elif wake is not None:
            self.board.idle()
        return True

    def take_input(self, wait: float) -> None:
        """Take console input, waiting at most so many seconds for it."""
        if self.poll_input is None:
            return
        data = self.poll_input(wait)
        if data:
            self.board.feed_console(data)
        elif data is None:
            self.poll_input = None

    def close(self) -> None:
        """Release the engine."""
        self.engine.close()
