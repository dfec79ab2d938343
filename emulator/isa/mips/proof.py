"""Proof by running: executes the examples of the MIPS32 table in kernel and in user mode, in both byte orders.

Room: `emulator/isa/mips`. Uses any engine that runs at full privilege. What must be seen is data (`proof_cases`), by
the manual; where the engine departs from it, `DEPARTURES` there says so, and a departure that is not needed refutes
the row as a missing one does.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from emulator.engine.exit import Exit, ExitKind
from emulator.engine.mips import DEBUG_BREAKPOINT, EXECUTE, KERNEL, READ, SUPERVISOR, USER, WRITE, MipsEngine
from emulator.isa.mips import registers as r
from emulator.isa.proof import Proof, Verdict
from emulator.isa.sensitive import SensitiveInstruction

CODE, DATA, LAND = 0x1000, 0x3000, 0x2000
"""Offsets, which are physical addresses: code, what it works on, and where it may go."""
SIZE = 0x8000
BASE = {0: 0x8000_0000, 1: 0x0040_0000, 2: 0x0040_0000}
"""By mode: what is added to an offset, KSEG0 in kernel mode and a page of a view otherwise."""
_END = 0x0000_000D
"""BREAK, behind the instruction: seen there, it completed."""
_RESET = r.STATUS_CU1


class Mode(Enum):
    """The mode in which a case is run."""

    KERNEL = KERNEL
    SUPERVISOR = SUPERVISOR
    USER = USER


class Event(NamedTuple):
    """How the execution of an instruction ended."""

    what: str
    """"completes", "arrives" (at the landing place), "exception", "waits", or "elsewhere"."""
    code: int = 0
    """Of an exception: Cause.ExcCode."""
    unit: int = 0
    """Of CpU: the coprocessor."""

    def __str__(self) -> str:
        if self.what != "exception":
            return self.what
        if self.code == DEBUG_BREAKPOINT:
            return "DBp"
        name = r.EXCEPTIONS.get(self.code, f"exception {self.code}")
        return f"{name}({self.unit})" if self.code == r.CPU else name


COMPLETES, ARRIVES, WAITS = Event("completes"), Event("arrives"), Event("waits")


def raises(code: int, unit: int = 0) -> Event:
    """The instruction raised an exception, PC still at it."""
    return Event("exception", code, unit)


@dataclass(frozen=True, slots=True)
class Claim:
    """What must be seen after the instruction."""

    event: Event
    v0: int | None = None
    """What v0 must hold, if anything is claimed of it."""


@dataclass(frozen=True, slots=True)
class Case:
    """One instruction with a beginning, and what the manual says of it in kernel and in less privileged modes."""

    word: int
    kernel: Claim
    user: Claim
    before: tuple[int, ...] = ()
    """Instructions executed first, in every mode."""
    kernel_before: tuple[int, ...] = ()
    """Instructions executed first in kernel mode."""
    gpr: Mapping[int, int] = field(default_factory=dict)
    """General registers by number; a0 holds the address of the data unless named here."""
    status: int = _RESET
    """Status but for the mode."""
    user_local_readable: bool = False


class Departure(NamedTuple):
    """An engine does something else than the manual says."""

    claim: Claim
    reason: str


class Bench:
    """A processor with a little memory, on which cases are run one after the other."""

    def __init__(self, cpu: MipsEngine) -> None:
        self._cpu = cpu
        self._room = memoryview(mmap.mmap(-1, SIZE))
        cpu.map_memory(0, self._room)

    def _put(self, offset: int, words: Sequence[int]) -> None:
        order = "big" if self._cpu.byte_order == "big" else "little"
        for index, word in enumerate(words):
            self._room[offset + 4 * index : offset + 4 * index + 4] = word.to_bytes(4, order)  # type: ignore[arg-type]

    def execute(self, case: Case, mode: Mode) -> tuple[Event, int]:
        """Run a case from a freshly loaded state: how it ended, and v0. Errors of the engine propagate."""
        cpu, base = self._cpu, BASE[mode.value]
        before = case.before + (case.kernel_before if mode is Mode.KERNEL else ())
        self._room[:] = bytes(SIZE)
        self._put(CODE, (*before, case.word, _END))
        self._put(LAND, (_END,))
        self._prepare(case, mode)
        registers = cpu.registers
        at = base + CODE + 4 * len(before)
        places = {at + 4: COMPLETES, base + LAND: ARRIVES}
        seen: list[Event] = []

        def handler(exit_: Exit) -> None:
            if exit_.kind == ExitKind.MISS:
                self._miss(exit_, mode)
                return
            if not seen:
                seen.append(_event(exit_, registers.pc, at, places))
            cpu.stop()

        cpu.run(handler)
        return seen[0], registers.gpr[2]

    def _prepare(self, case: Case, mode: Mode) -> None:
        """Load the whole state that a case begins with."""
        cpu, registers = self._cpu, self._cpu.registers
        cpu.flush_code()
        cpu.use_views(mode is not Mode.KERNEL)
        for number in range(32):
            registers.gpr[number] = 0
        registers.gpr[4] = BASE[mode.value] + DATA
        for number, value in case.gpr.items():
            registers.gpr[number] = value
        registers.break_link()
        for name in ("EPC", "ErrorEPC"):
            registers.set_cp0(name, BASE[0] + LAND)
        registers.set_cp0("HWREna", 0)
        registers.set_cp0("Status", case.status)
        if mode is not Mode.KERNEL:
            registers.mode = mode.value
            cpu.clear_view(mode.value)
        registers.set_user_local_readable(case.user_local_readable)
        registers.jump(BASE[mode.value] + CODE)

    def _miss(self, exit_: Exit, mode: Mode) -> None:
        """The room's pages are there; kernel segments are an address error, everything else does not match."""
        offset = exit_.address - BASE[mode.value]
        if 0 <= offset < SIZE:
            self._cpu.map_page(mode.value, exit_.address, offset, READ | WRITE | EXECUTE)
            return
        store = exit_.error == 1
        exit_.refused, exit_.error = True, 1
        exit_.vector = (r.ADES if store else r.ADEL) if exit_.address >= r.KSEG0 else (r.TLBS if store else r.TLBL)


def _event(exit_: Exit, pc: int, at: int, places: Mapping[int, Event]) -> Event:
    """What the first exit says of the instruction at `at`."""
    if exit_.kind == ExitKind.HALT:
        return WAITS
    if exit_.kind != ExitKind.FAULT:
        return Event("elsewhere")
    if exit_.vector == r.BP and pc in places:
        return places[pc]
    return raises(exit_.vector, exit_.error if exit_.vector == r.CPU else 0) if pc == at else Event("elsewhere")


def _difference(event: Event, v0: int, claim: Claim) -> str:
    """How what was seen is not what was claimed, or nothing."""
    if event != claim.event:
        return f"{event}, not {claim.event}"
    return "" if claim.v0 is None or claim.v0 == v0 else f"v0 is {v0:#x}, not {claim.v0:#x}"


def _describe(event: Event, v0: int, claim: Claim) -> str:
    return f"{event}" if claim.v0 is None else f"{event}, v0={v0:#x}"


def prove(
    row: SensitiveInstruction,
    cases: Sequence[Case],
    departures: Mapping[tuple[str, Mode, int], Departure],
    benches: Mapping[str, Bench],
) -> Proof:
    """Run all cases of a row in every mode and byte order. `departures` are by row, mode and number of the case."""
    verdict, remarks, seen = Verdict.PROVEN, list[str](), dict[Mode, str]()
    for order, bench in benches.items():
        for number, case in enumerate(cases):
            for mode in Mode:
                claim = case.kernel if mode is Mode.KERNEL else case.user
                event, v0 = bench.execute(case, mode)
                seen.setdefault(mode, _describe(event, v0, claim))
                against = _difference(event, v0, claim)
                where = f"{mode.name.lower()} mode, {order}-endian, case {number + 1} of {len(cases)}"
                departure = departures.get((row.name, mode, number))
                if departure is None:
                    if against:
                        verdict = Verdict.REFUTED
                        remarks.append(f"{where}: {against}")
                elif not against:
                    verdict = Verdict.REFUTED
                    remarks.append(f"{where}: does as the manual says, but a departure is listed: {departure.reason}")
                elif _difference(event, v0, departure.claim):
                    verdict = Verdict.REFUTED
                    remarks.append(f"{where}: departs otherwise than listed: {against}")
                elif verdict is Verdict.PROVEN:
                    verdict = Verdict.DEPARTS
                    remarks.append(departure.reason)
    return Proof(row, verdict, seen[Mode.KERNEL], seen[Mode.USER], tuple(remarks))


def prove_rows(rows: Sequence[SensitiveInstruction]) -> Iterator[Proof]:
    """Prove rows in their order, in both byte orders. Raises `EngineMissing` when the engine cannot be opened."""
    from emulator.engine.engines import MIPS_ENGINES
    from emulator.isa.mips.proof_cases import DEPARTURES, cases_of

    open_engine = next(iter(MIPS_ENGINES.values()))
    engines = {order: open_engine(order) for order in ("little", "big")}
    try:
        benches = {order: Bench(engine) for order, engine in engines.items()}
        for row in rows:
            yield prove(row, cases_of(row), DEPARTURES, benches)
    finally:
        for engine in engines.values():
            engine.close()
