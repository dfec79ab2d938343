"""Proof by running: executes the examples of the AArch64 table at EL1 and at EL0 and compares with the manual.

Room: `emulator/isa/aarch64`. Uses any engine that runs at full privilege. What must be seen is data (`proof_cases`);
where the engine departs from the manual, `DEPARTURES` there says so, and a departure that is not needed refutes the
row as a missing one does.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from emulator.engine.aarch64 import SP, AArch64Engine
from emulator.engine.exit import Exit, ExitKind
from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.registers import BY_NAME
from emulator.isa.aarch64.room import (
    BASE,
    CODE,
    DATA,
    KERNEL_DATA,
    LAND,
    MAIR,
    ROOM_SIZE,
    ROOT,
    SCTLR,
    STACK,
    TCR,
    furnish,
)
from emulator.isa.proof import Proof, Seen, judge
from emulator.isa.sensitive import SensitiveInstruction


class Mode(Enum):
    """The exception level at which a case is run."""

    KERNEL = 1
    USER = 0


class Event(NamedTuple):
    """How the execution of an instruction ended."""

    what: str
    """"completes", "arrives" (at the landing place), "exception", "waits", or "elsewhere"."""
    kind: int = 0
    """Class of an exception."""

    def __str__(self) -> str:
        return x.NAMES.get(self.kind, f"class {self.kind:#x}") if self.what == "exception" else self.what


COMPLETES = Event("completes")
ARRIVES = Event("arrives")
WAITS = Event("waits")


def exception(kind: int) -> Event:
    """The instruction raised an exception."""
    return Event("exception", kind)


@dataclass(frozen=True, slots=True)
class Claim:
    """What must be seen after the instruction."""

    event: Event
    shows: Mapping[str, int] = field(default_factory=dict)
    """Names of `Outcome.values` and what they must be."""


@dataclass(frozen=True, slots=True)
class Case:
    """One instruction with a beginning, and what the manual says of it at both levels."""

    word: int
    kernel: Claim
    user: Claim
    gpr: Mapping[int, int] = field(default_factory=dict)
    """General registers by number; X0 is `room.DATA` unless named here."""
    before: tuple[int, ...] = ()
    """Words executed first, at EL1 only."""
    sctlr: int = SCTLR
    absent: bool = False
    """The engine's processor lacks the extension: both claims are the manual's for such a processor."""


class Departure(NamedTuple):
    """An engine does something else than the manual says."""

    event: Event
    reason: str
    shows: Mapping[str, int] = {}


class Outcome(NamedTuple):
    """What was seen after an instruction."""

    event: Event
    values: Mapping[str, int]


_ELR, _SPSR = BY_NAME["ELR_EL1"].encoding, BY_NAME["SPSR_EL1"].encoding


class Bench:
    """A processor with a furnished room, on which cases are run one after the other."""

    def __init__(self, cpu: AArch64Engine) -> None:
        self._cpu = cpu
        self._room = memoryview(mmap.mmap(-1, ROOM_SIZE))
        cpu.map_memory(BASE, self._room)

    def execute(self, case: Case, mode: Mode) -> Outcome:
        """Run a case from a freshly loaded state and return what was seen. Errors of the engine propagate."""
        cpu, room = self._cpu, self._room
        before = case.before if mode is Mode.KERNEL else ()
        room[:] = bytes(ROOM_SIZE)
        furnish(room, b"".join(word.to_bytes(4, "little") for word in (*before, case.word)))
        room[KERNEL_DATA - BASE : KERNEL_DATA - BASE + 8] = b"\x88\x77\x66\x55\x44\x33\x22\x11"
        room[DATA - BASE : DATA - BASE + 8] = b"\x88\x77\x66\x55\x44\x33\x22\x11"
        self._prepare(case, mode)
        at = CODE + 4 * len(before)
        outcome: list[Outcome] = []

        def handler(exit_: Exit) -> None:
            if not outcome:
                outcome.append(Outcome(_event(exit_, cpu.registers.pc, at), self._values()))
            cpu.stop()

        cpu.run(handler)
        return outcome[0]

    def _prepare(self, case: Case, mode: Mode) -> None:
        cpu = self._cpu
        state = cpu.registers
        cpu.set_roots(ROOT, 0)
        cpu.set_control(case.sctlr, TCR, MAIR)
        cpu.flush_code()
        state.level = 1
        for number in range(31):
            state.gpr[number] = 0
        state.gpr[0], state.gpr[SP] = DATA, STACK
        for number, value in case.gpr.items():
            state.gpr[number] = value
        state.nzcv, state.daif = 0, x.MASKS
        state.set_system(_ELR, LAND)
        state.set_system(_SPSR, x.MASKS | x.EL1H)
        state.level = mode.value
        state.pc = CODE

    def _values(self) -> dict[str, int]:
        state = self._cpu.registers
        room = self._room
        values = {f"X{number}": state.gpr[number] for number in range(31)}
        values |= {"EL": state.level, "DAIF": state.daif, "SPSel": state.pstate & 1}
        values["DATA"] = int.from_bytes(room[DATA - BASE : DATA - BASE + 8], "little")
        return values


def _event(exit_: Exit, pc: int, at: int) -> Event:
    """What the first exit says of the instruction at `at`."""
    if exit_.kind is ExitKind.HALT:
        return WAITS
    if exit_.kind is not ExitKind.FAULT:
        return Event("elsewhere", exit_.kind)
    if exit_.vector == x.BREAKPOINT and exit_.error & 0xFFFF == 0x77:
        return ARRIVES if pc == LAND else COMPLETES
    behind = exit_.vector == x.SVC
    return exception(exit_.vector) if pc == at + 4 * behind else Event("elsewhere", exit_.vector)


def prove(
    row: SensitiveInstruction,
    cases: Sequence[Case],
    departures: Mapping[tuple[str, Mode, int], Departure],
    bench: Bench,
) -> Proof:
    """Run all cases of a row at both levels. `departures` are by row name, mode and number of the case."""

    def execute(case: Case, mode: Mode, _names: tuple[str, ...]) -> Seen:
        outcome = bench.execute(case, mode)
        return Seen(outcome.event, outcome.values.__getitem__)

    return judge(row, cases, departures, ((Mode.KERNEL, "EL1"), (Mode.USER, "EL0")), execute)


def prove_rows(rows: Sequence[SensitiveInstruction]) -> Iterator[Proof]:
    """Run rows of the table on the embedded engine, in their order. Raises `EngineMissing`."""
    from emulator.engine.engines import open_unicorn_aarch64
    from emulator.isa.aarch64.proof_cases import DEPARTURES, cases_of

    engine = open_unicorn_aarch64()
    try:
        bench = Bench(engine)
        for row in rows:
            yield prove(row, cases_of(row), DEPARTURES, bench)
    finally:
        engine.close()
