"""Stopping a guest at an instruction, at a change of memory, after one instruction, or when somebody asks.

Room: `paravirt/services`. All stops are the engine's (`emulator.engine.pausing.WatchingEngine`): while nothing is set
nothing is watched, and the guest runs as fast as ever. A stop leaves no trace: the block that was left in its midst is
counted once, so that interrupts come where they would have come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple

from emulator.driver import Driver
from emulator.errors import UsageError
from emulator.machine import EndKind, Outcome

MOST: Final = 1024
"""Breakpoints that can be set at once."""
MOST_WATCHED: Final = 64
"""Words of memory that can be watched at once."""
_WORD: Final = 8
_EVERYWHERE: Final = (1 << 64) - 1
_SOON: Final = 200_000
"""Blocks after which no further step is expected."""
_QUIET: Final = Outcome(EndKind.STOPPED, detail="steps are over")
_HALTED: Final = Outcome(EndKind.STOPPED, detail="stopped by a debugger")


class StopKind(Enum):
    """Why a guest stands."""

    BREAKPOINT = "breakpoint"
    WATCHPOINT = "watchpoint"
    READ = "read"
    """Behind an instruction that has read what is watched for that."""
    ACCESS = "access"
    """Behind one that has read or written what is watched for both."""
    STEP = "step"
    ASKED = "asked"
    BEGINNING = "beginning"
    """Backwards: there is nothing before this."""
    ENDED = "ended"


class Stop(NamedTuple):
    """Where and why a guest stands."""

    kind: StopKind
    address: int = 0
    """Of the breakpoint, guest-virtual, or of what is watched as its setter named it."""
    outcome: Outcome | None = None
    """How the guest ended, for `ENDED`."""


Called = Callable[[], object]
"""What is done at a breakpoint instead of stopping; the guest stops where it gives True."""


@dataclass(slots=True)
class _Place:
    """A breakpoint."""

    call: Called | None
    observer: int = -1
    wanted: bool = True


@dataclass(slots=True)
class _Watched:
    """Memory that is watched."""

    physical: int
    size: int
    kind: StopKind
    observers: tuple[int, ...] = ()
    wanted: bool = True


class Stops:
    """All that stops one guest."""

    def __init__(self, driver: Driver) -> None:
        """Raises `UsageError` for an engine that cannot be watched."""
        able = driver.engine.capabilities
        if not (able.watches or able.pauses_exactly):
            raise UsageError(
                f"the {able.name} engine cannot stop at an instruction of {driver.machine.platform.isa} guests; take "
                "--engine unicorn"
            )
        self.driver = driver
        self.engine: Any = driver.engine
        self.hits = 0
        """Breakpoints reached."""
        self._places: dict[int, _Place] = {}
        self._watched: dict[tuple[int, int, StopKind], _Watched] = {}
        self._stop: Stop | None = None
        self._within = False
        """The stop is before an instruction in the midst of a block."""
        self._stepper = -1
        """What looks at every instruction, while guests are stepped and for a while behind that."""
        self._stepping = False
        self._exact = able.pauses_exactly
        self._raised = False
        """The word has changed, and nobody was called for it yet."""
        self._flag = memoryview(bytearray(16))
        """A word that native code looks at before every instruction: it changes where Python is to be called."""
        self._asked = False
        self._begun = False
        self._last: tuple[Any, ...] = ()
        """The instruction that was begun last: one that faults, and is begun again, is no other."""
        self._step_from: tuple[Any, ...] | None = None
        self._in_fixup: Callable[[int], bool] = getattr(driver, "_in_fixup", lambda _pc: False)

    # -- what is set ----------------------------------------------------------------------------

    @property
    def addresses(self) -> list[int]:
        """Guest-virtual addresses of the breakpoints."""
        return [address for address, place in self._places.items() if place.wanted]

    @property
    def watched(self) -> list[tuple[int, int, int]]:
        """(name, guest-physical address, bytes) of all that is watched for changes."""
        changes = StopKind.WATCHPOINT
        return [
            (at, one.physical, one.size)
            for (at, _, kind), one in self._watched.items()
            if kind is changes and one.wanted
        ]

    @property
    def watched_for_reads(self) -> bool:
        """Whether something is watched for being read."""
        return any(one.wanted and one.kind is not StopKind.WATCHPOINT for one in self._watched.values())

    def set_breakpoint(self, address: int, call: Called | None = None) -> None:
        """Stop before the instruction at a guest-virtual address, in every address space."""
        place = self._places.get(address)
        if place is not None:
            place.call, place.wanted = call, True
        elif len(self._places) < MOST:
            self._places[address] = _Place(call)
        else:
            raise UsageError(f"{MOST} breakpoints are set; take one away before another is set")

    def remove_breakpoint(self, address: int) -> None:
        """Do not stop there any more."""
        place = self._places.get(address)
        if place is not None:
            place.wanted = False

    def watch(self, physical: int, size: int, name: int, kind: StopKind = StopKind.WATCHPOINT) -> None:
        """Stop behind every instruction that changed some of `size` bytes of memory, whoever did it; or (`READ`,
        `ACCESS`) that has itself read, or read or written, some of them. `name` is what `Stop` says."""
        memory = self.driver.machine.memory
        if not 0 < size <= _WORD * MOST_WATCHED or not memory.base <= physical <= memory.end - size - _WORD:
            raise UsageError(f"{size} bytes at {physical:#x} cannot be watched: they are not in the guest's memory")
        if sum(-(-one.size // _WORD) for one in self._watched.values()) >= MOST_WATCHED:
            raise UsageError(f"{MOST_WATCHED} words are watched; take one away before another is watched")
        self._watched[name, size, kind] = _Watched(physical, size, kind)

    def unwatch(self, size: int, name: int, kind: StopKind = StopKind.WATCHPOINT) -> None:
        """Watch it no more."""
        one = self._watched.get((name, size, kind))
        if one is not None:
            one.wanted = False

    def clear(self) -> None:
        """Take everything away."""
        for place in self._places.values():
            place.wanted = False
        for one in self._watched.values():
            one.wanted = False
        self._put_up()
        self._end_steps()

    def clear_observers(self) -> None:
        """Watch nothing until the guest goes on; what is set stays set."""
        self._end_steps()
        for place in self._places.values():
            if place.observer >= 0:
                self.engine.unobserve(place.observer)
                place.observer = -1
        for one in self._watched.values():
            for observer in one.observers:
                self.engine.unobserve(observer)
            one.observers = ()

    def resumed(self) -> None:
        """The guest has run before, in another process: it goes on where it is."""
        self._begun = True
        self.driver.machine.begin()

    def ask(self) -> None:
        """Stop as soon as may be: called while the guest runs, where `machine.stop_when` is."""
        self._asked = True

    # -- going ----------------------------------------------------------------------------------

    def go(self) -> Stop:
        """Run to the next stop, or to the guest's end."""
        self._put_up()
        if not self._exact:
            self._end_steps()
        elif self._stepper >= 0:
            # To put up and to take away costs all translated code: one who steps will soon step again.
            self.engine.pause_at(self.engine.progress + _SOON, lambda: self.driver.end(_QUIET))
        return self._resume()

    def step(self) -> Stop:
        """Do one instruction of the guest's own; what a fixup does for one counts as that one."""
        if self._stepper < 0 and self._exact:
            self._stepper = self.engine.observe_change(self._flag[:8], self._looked, exactly=True)
            self._raised = False
        elif self._stepper < 0:
            self._stepper = self.engine.observe_code(0, _EVERYWHERE, self._stepped)
        self._step_from = None
        self._call_next()
        return self._resume(stepping=True)

    def _resume(self, *, stepping: bool = False) -> Stop:
        driver = self.driver
        self._stop, self._within, self._asked, self._stepping = None, False, False, stepping
        self._last = () if stepping else self._moment(driver.pc)
        if not self._begun:
            self._begun = True
            driver.machine.begin()
            driver.machine.arm()
        outcome = driver.resume()
        if outcome is _QUIET:
            self._end_steps()
            outcome = driver.resume()
        elif self._exact and self._stepper >= 0 and not stepping:
            self.engine.pause_at(None)
        if self._within:
            self.engine.count_again()
        if self._stop is not None:
            return self._stop
        if self._asked or (outcome.kind is EndKind.STOPPED and outcome is not _HALTED):
            return Stop(StopKind.ASKED, driver.pc)
        return Stop(StopKind.ENDED, driver.pc, outcome)

    def _halt(self, kind: StopKind, address: int) -> None:
        if self._stop is None:
            self._stop = Stop(kind, address)
            self._within = True
            self.driver.end(_HALTED)

    def _moment(self, address: int) -> tuple[Any, ...]:
        registers = getattr(self.engine, "registers", None)
        return address, tuple(registers.gpr) if registers is not None else ()

    def _again(self, moment: tuple[Any, ...]) -> bool:
        """Whether this is the instruction that was begun last, begun again behind an exit."""
        same = moment == self._last
        self._last = moment
        return same

    def _seen(self, address: int) -> None:
        """A watched instruction is about to begin."""
        place = self._places.get(address)
        if place is None or self._again(self._moment(address)) or not place.wanted or self._stepping:
            return
        self.hits += 1
        if place.call is None or place.call():
            self._halt(StopKind.BREAKPOINT, address)

    def _looked(self) -> None:
        """The word has changed."""
        self._raised = False
        if self._stepping:
            self._call_next()
            self._stepped(self.driver.pc)

    def _call_next(self) -> None:
        """Have the next instruction looked at."""
        if not self._raised:
            self._raised = True
            self._flag[0] ^= 1

    def _stepped(self, address: int) -> None:
        """Any instruction is about to begin."""
        moment = self._moment(address)
        if self._step_from is None:
            self._step_from = moment
        elif moment != self._step_from and not self._in_fixup(address) and not self._in_delay_slot:
            place = self._places.get(address)
            known = place is not None and place.wanted
            self._halt(StopKind.BREAKPOINT if known else StopKind.STEP, address)

    @property
    def _in_delay_slot(self) -> bool:
        """Whether the instruction belongs to the branch before it (MIPS): one does not stop between the two."""
        return bool(getattr(self.engine.registers, "in_delay_slot", False))

    def _end_steps(self) -> None:
        if self._stepper >= 0:
            self.engine.unobserve(self._stepper)
            self._stepper = -1

    def _put_up(self) -> None:
        """Have the engine watch what is wanted, and nothing else."""
        for address, place in list(self._places.items()):
            if place.wanted and place.observer < 0:
                place.observer = self.engine.observe_code(address, address, self._seen)
            elif not place.wanted:
                if place.observer >= 0:
                    self.engine.unobserve(place.observer)
                del self._places[address]
        for key, one in list(self._watched.items()):
            if one.wanted and not one.observers:
                one.observers = self._observers(one, key[0])
            elif not one.wanted:
                for observer in one.observers:
                    self.engine.unobserve(observer)
                del self._watched[key]

    def _observers(self, one: _Watched, name: int) -> tuple[int, ...]:
        """Have the engine watch some memory."""
        memory, halt = self.driver.machine.memory, self._changed(one.kind, name)
        if one.kind is not StopKind.WATCHPOINT:
            writes = one.kind is StopKind.ACCESS
            return tuple(self.engine.observe_access(one.physical, one.size, halt, reads=True, writes=writes))
        first = one.physical - memory.base
        return tuple(
            self.engine.observe_change(memory.view[at : min(at + _WORD, first + one.size)], halt, exactly=True)
            for at in range(first, first + one.size, _WORD)
        )

    def _changed(self, kind: StopKind, name: int) -> Callable[[], None]:
        return lambda: self._halt(kind, name)
