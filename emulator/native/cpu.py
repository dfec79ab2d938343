"""What every reference run does with an exit: dispatch it by kind, count it, offer a waiting interrupt.

Room: `emulator/native`. An instruction set adds its registers, the handlers of its exits and how it takes an interrupt
(`emulator.native.x86`, ...). It knows nothing of a hypervisor: a rewritten guest is held against what runs here.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

from emulator.driver import Driver
from emulator.engine.exit import Exit, ExitKind
from emulator.isa.exceptions import ProcessorShutdown
from emulator.machine import EndKind, Machine, Outcome

Handlers = Mapping[ExitKind, Callable[[Exit], None]]


class NativeCpu(Driver):
    """The real processor of a reference run and its driver."""

    WITHIN_AN_INSTRUCTION: ClassVar[frozenset[ExitKind]] = frozenset()
    """Kinds of exits in the midst of an instruction: an interrupt is offered at the next block."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.exits: dict[str, int] = {}
        """Exits by kind."""
        self._dispatch: dict[ExitKind, Callable[[Exit], None]] = {ExitKind.BUDGET: self._budget, **self._handlers()}

    def _handlers(self) -> Handlers:
        """The handler of each kind of exit that the instruction set's engine has."""
        raise NotImplementedError

    @property
    def level(self) -> int:
        """The privilege level, as the architecture numbers it."""
        raise NotImplementedError

    def _look(self) -> None:
        """An exit has come: notice what the guest may have changed since the last one."""

    def _offer_interrupt(self) -> None:
        """An interrupt waits: take it if the processor would, otherwise look again."""
        raise NotImplementedError

    def _handle(self, exit_: Exit) -> None:
        self._look()
        if self.trace is not None:
            self._trace_exit(exit_, self.level, self.pc)
        self._unlooked += 1
        if self._unlooked == Machine.EXITS:
            self._end_if_over()
        kind = ExitKind(exit_.kind)
        self.exits[kind.name] = self.exits.get(kind.name, 0) + 1
        try:
            self._dispatch[kind](exit_)
            if self.board.intr:
                if kind in self.WITHIN_AN_INSTRUCTION:
                    self.engine.set_deadline(self.engine.progress + 1)
                else:
                    self._offer_interrupt()
        except ProcessorShutdown as shutdown:
            self.end(Outcome(EndKind.TRIPLE_FAULT, detail=str(shutdown)))
