"""What every driver of a machine's CPU does: run to an end, notice limits, tell who watches.

Room: `emulator`. The reference (`emulator.native`) and the hypervisor are drivers; they differ in how they
handle an exit. A driver knows its machine and no guest.
"""

from collections.abc import Callable

from emulator.engine.exit import Exit, describe
from emulator.machine import EndKind, Machine, Outcome


class Driver:
    """One run of one machine. `_handle` is given every exit."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.engine = machine.engine
        self.board = machine.board
        self.outcome: Outcome | None = None
        self.observe: Callable[[str, int, int, int], None] | None = None
        """Called with (event, vector or number, error, RIP) for every event that the guest can see."""
        self.trace: Callable[[str], None] | None = None
        """Called with a line for every exit, before it is handled."""
        self._unlooked = 0

    def _handle(self, exit_: Exit) -> None:
        raise NotImplementedError

    def _handler(self) -> Callable[[Exit], None]:
        """What the engine calls in this run."""
        return self._handle

    def run(self) -> Outcome:
        """Run until the guest ends or a limit is reached."""
        self.outcome = None
        self.machine.begin()
        self.machine.arm()
        handler = self._handler()
        while self.outcome is None:
            self.engine.run(handler)
        return self.outcome

    def end(self, outcome: Outcome) -> None:
        """End the run after this exit."""
        if self.outcome is None:
            self.outcome = outcome
        self.engine.stop()

    def _end_if_over(self) -> None:
        """End the run if the guest shut down or a limit is reached.

        Also asked after many exits: a guest that exits all the time makes no progress by which a limit is noticed.
        """
        self._unlooked = 0
        outcome = self.machine.over()
        if outcome is not None:
            self.end(outcome)

    def _wait_for_interrupt(self) -> None:
        """HLT with interrupts enabled: time passes to the next one; the run ends when none can come."""
        while not self.board.intr:
            outcome = self.machine.over()
            if outcome is None and not self.machine.idle():
                outcome = Outcome(EndKind.HALTED, detail="halted with no interrupt to come")
            if outcome is not None:
                self.end(outcome)
                return
        self.machine.arm()

    def _event(self, name: str, number: int, error: int, rip: int) -> None:
        if self.observe is not None:
            self.observe(name, number, error, rip)

    def _trace_exit(self, exit_: Exit, level: int, rip: int) -> None:
        if self.trace is not None:
            self.trace(f"{self.engine.progress} cpl {level} rip {rip:#x} {describe(exit_)}")
