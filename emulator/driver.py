"""What every driver of a machine's CPU does: run to an end, notice limits, tell who watches.

Room: `emulator`. The reference (`emulator.native`) and the hypervisor are drivers; they differ in how they
handle an exit. A driver knows its machine and no guest.
"""

from collections.abc import Callable
from typing import Any

from emulator.board.board import Board
from emulator.engine.exit import Exit, describe
from emulator.engine.protocol import Engine, Handler
from emulator.machine import EndKind, Machine, Outcome

Observe = Callable[[str, int, int, int, int], None]
"""Told of an event that the guest can see: what it is, vector or number, error, address of the instruction, and the
address that a memory fault is about (0 for others)."""


class Driver:
    """One run of one machine. `_handle` is given every exit."""

    not_saved = ""
    """Why its guest can be neither saved nor recorded, in a sentence; nothing where that is for others to say."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.engine: Engine = machine.engine
        self.board: Board = machine.board
        self.outcome: Outcome | None = None
        self.ended_at = 0
        """`pc` when the run ended: an engine may go on to the end of a basic block."""
        self.asleep = False
        """The run ended because the guest halted and nothing could wake it: it has not gone on behind that."""
        self.observe: Observe | None = None
        """Called with every event that the guest can see."""
        self.trace: Callable[[str], None] | None = None
        """Called with a line for every exit, before it is handled."""
        self.around: Callable[[Handler], Handler] | None = None
        """Makes of the handler of exits what the engine calls, from the next `resume` on: who looks at single exits
        pays for it, and nobody else."""
        self._unlooked = 0
        machine.after_device_write = self._device_written

    @property
    def pc(self) -> int:
        """Guest-virtual address of the instruction that the guest is at."""
        raise NotImplementedError

    @property
    def state(self) -> tuple[Any, ...]:
        """Everything the guest can see of its processor, as a plain value."""
        raise NotImplementedError

    def enter(self, state: Any) -> None:
        """Set the guest's processor up as the boot protocol says: what `Machine.place` gave."""
        raise NotImplementedError

    def _handle(self, exit_: Exit) -> None:
        raise NotImplementedError

    def _handler(self) -> Callable[[Exit], None]:
        """What the engine calls in this run."""
        return self._handle

    def run(self) -> Outcome:
        """Run, from where the processor was set to, until the guest ends or a limit is reached."""
        self.asleep = False
        self.machine.begin()
        self.machine.arm()
        return self.resume()

    def resume(self) -> Outcome:
        """Go on where the run was ended by `end`, as if it had not been; until the next end. A guest that shut down
        stays so, and one that halted waits on."""
        self.outcome = None if self.board.shutdown is None else self.machine.over()
        if self.asleep and self.outcome is None:
            self.asleep = False
            self.halted()
        handler = self._handler() if self.around is None else self.around(self._handler())
        while self.outcome is None:
            self.engine.run(handler)
        return self.outcome

    def halted(self) -> None:
        """The guest has halted: time passes to what wakes it, or the run ends. For who knows how it is woken."""

    def end(self, outcome: Outcome) -> None:
        """End the run after this exit."""
        if self.outcome is None:
            self.outcome = outcome
            self.ended_at = self.pc
            self.asleep = outcome.kind is EndKind.HALTED
        self.engine.stop()

    def _end_if_over(self) -> None:
        """End the run if the guest shut down or a limit is reached.

        Also asked after many exits: a guest that exits all the time makes no progress by which a limit is noticed.
        """
        self._unlooked = 0
        outcome = self.machine.over()
        if outcome is not None:
            self.end(outcome)

    def _device_written(self) -> None:
        """A device took a value: the run may be over, and the clock's next event another."""
        if self.board.shutdown is not None:
            self._end_if_over()
        self.machine.arm()

    def _budget(self, _exit: Exit) -> None:
        """The engine came back at a deadline: run what is due."""
        self.machine.tick()
        self._end_if_over()
        self.machine.arm()

    def _wait_for_interrupt(self) -> None:
        """The CPU waits with interrupts enabled: time passes to the next one; the run ends when none can come."""
        while not self.board.intr:
            outcome = self.machine.over()
            if outcome is None and not self.machine.idle():
                outcome = Outcome(EndKind.HALTED, detail="halted with no interrupt to come")
            if outcome is not None:
                self.end(outcome)
                return
        self.machine.arm()

    def _event(self, name: str, number: int, error: int, pc: int, address: int = 0) -> None:
        if self.observe is not None:
            self.observe(name, number, error, pc, address)

    def _trace_exit(self, exit_: Exit, level: int, pc: int) -> None:
        if self.trace is not None:
            self.trace(f"{self.engine.progress} cpl {level} rip {pc:#x} {describe(exit_)}")
