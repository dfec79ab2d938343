"""What every board offers: an interrupt request to the CPU, console input, time to the next event, the end of a run.

Room: `emulator/board`. A machine and its drivers see a board through `Board`; which devices are where, and how the CPU
learns which device wants it, is the board's own (`emulator.board.pc`, ...).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from emulator.bus import MemoryBus
from emulator.clock import Clock


class ShutdownKind(Enum):
    """How a guest ended its run."""

    POWER_OFF = "power-off"
    RESET = "reset"
    DEBUG_EXIT = "debug-exit"


@dataclass(frozen=True, slots=True)
class Shutdown:
    """The end of a run, as the guest asked for it."""

    kind: ShutdownKind
    status: int = 0
    """What the guest wrote to the debug exit register; 0 for the other kinds."""

    @property
    def exit_status(self) -> int:
        """The exit status of a process that ends so: 0, or as QEMU makes it of a debug exit, (status << 1 | 1)."""
        return (self.status << 1 | 1) & 0xFF if self.kind is ShutdownKind.DEBUG_EXIT else 0


class Board(Protocol):
    """A board as its machine and the driver of its CPU see it."""

    intr: bool
    """The board requests the CPU. How it is answered (an acknowledge, a register that is read) is the board's own."""
    on_interrupt: Callable[[bool], None] | None
    """Called when `intr` changes, with its new value."""
    shutdown: Shutdown | None
    """How the guest ended its run; None while it has not."""
    mmio: MemoryBus
    """Device registers in guest-physical memory."""

    @property
    def device_space(self) -> tuple[tuple[int, int], ...]:
        """(guest-physical address, bytes) of everything that the memory bus answers, in whole pages."""
        ...

    def next_wake(self) -> int | None:
        """Virtual time in nanoseconds of the next event that can request the CPU as things are masked now."""
        ...

    def idle(self) -> bool:
        """The CPU waits with interrupts on: let time jump until one is requested; False when only input can wake it."""
        ...

    def feed_console(self, data: bytes) -> None:
        """Bytes arrive at the console."""
        ...

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the state of clock and devices."""
        ...


def pass_time(board: Board, clock: Clock) -> bool:
    """Let time jump from one event to the next until the board requests its CPU; False when only input can make it."""
    while not board.intr:
        when = board.next_wake()
        if when is None:
            return False
        clock.skip_to(when)
        clock.run_due()
    return True
