"""Proof by running: executes the examples of an x86 table in kernel and in user mode and compares.

Room: `emulator/isa/x86`. Uses any engine that runs at full privilege. What must be seen is
data (`proof_cases`), by the manual; where the engine departs from the manual, `DEPARTURES` there
says so, and a departure that is not needed refutes the row as a missing one does.
"""

import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from emulator.engine.exit import Exit, ExitKind
from emulator.engine.x86 import X86Engine
from emulator.isa.proof import Proof, Seen, judge
from emulator.isa.sensitive import SensitiveInstruction
from emulator.isa.x86 import registers as r
from emulator.isa.x86 import room as room64
from emulator.isa.x86 import room32
from emulator.isa.x86.room import CODE, DATA, GDT, IDT, LAND, ROOM_SIZE, ROOT, STACK


class Mode(Enum):
    """The privilege level at which a case is run."""

    KERNEL = 0
    USER = 3


class Event(NamedTuple):
    """How the execution of an instruction ended."""

    what: str
    """"completes", "arrives" (at the landing place), "exception", "elsewhere", or an exit's name in lower case."""
    vector: int = 0
    """Of an exception or a software interrupt."""
    error: int = 0
    """Error code of an exception that has one."""

    def __str__(self) -> str:
        if self.what != "exception":
            return f"{self.what} {self.vector:#x}" if self.vector else self.what
        known = r.EXCEPTIONS[self.vector]
        return f"{known.mnemonic}({self.error:#x})" if known.error_code else known.mnemonic


COMPLETES = Event("completes")
"""Execution went on behind the instruction."""
ARRIVES = Event("arrives")
"""Execution went on at `room.LAND`, as the far transfer or return said."""


def exception(vector: int, error: int = 0) -> Event:
    """The instruction raised an exception, RIP still at it."""
    return Event("exception", vector, error)


def software(vector: int) -> Event:
    """The instruction entered a gate."""
    return Event("software_interrupt", vector)


def exits(kind: ExitKind) -> Event:
    """The engine reported the instruction itself."""
    return Event(kind.name.lower())


@dataclass(frozen=True, slots=True)
class Claim:
    """What must be seen after the instruction."""

    event: Event
    shows: Mapping[str, int] = field(default_factory=dict)
    """Names of `Outcome.value` and what they must be."""


@dataclass(frozen=True, slots=True)
class Case:
    """One instruction with a beginning, and what the manual says of it in both modes."""

    code: bytes
    """The instruction alone."""
    kernel: Claim
    user: Claim
    gpr: Mapping[int, int] = field(default_factory=dict)
    """General-purpose registers by index; RAX is `room.DATA` and RSP is `room.STACK` unless named here."""
    data: bytes = b""
    """At `room.DATA`."""
    kernel_stack: Sequence[int] = ()
    """Words of the mode's width from RSP upwards, in kernel mode."""
    user_stack: Sequence[int] = ()
    """The same in user mode."""
    rflags: int = r.FLAG_FIXED | r.FLAG_IF
    cr0: int = r.CR0_PE | r.CR0_MP | r.CR0_ET | r.CR0_NE | r.CR0_WP | r.CR0_AM | r.CR0_PG
    cr4: int = r.CR4_PAE | r.CR4_OSFXSR | r.CR4_OSXMMEXCPT | r.CR4_TSD
    base: int = 0
    """Segment base of FS and GS."""
    kernel_prelude: bytes = b""
    """Instructions executed first, in kernel mode only."""
    absent: bool = False
    """The engine's processor lacks the extension: both claims are the manual's for such a processor."""


class Departure(NamedTuple):
    """An engine does something else than the manual says."""

    event: Event
    reason: str
    shows: Mapping[str, int] = {}


class Outcome:
    """What was seen after an instruction: an event and the state of the processor."""

    def __init__(self, event: Event, cpu: X86Engine, memory: memoryview, bits: int = 64) -> None:
        self.event = event
        seen = cpu.registers
        self._values = {name: seen.gpr[index] for index, name in enumerate(r.GPR_NAMES)}
        for index, name in enumerate(r.SEGMENT_NAMES):
            self._values[name], self._values[name + ".base"] = seen.segment(index)[:2]
        for number in (0, 3, 4):
            self._values[f"CR{number}"] = seen.control(number)
        for number in (0, 6, 7):
            self._values[f"DR{number}"] = seen.debug(number)
        for which, name in enumerate(("GDTR", "IDTR")):
            self._values[name + ".base"], self._values[name + ".limit"] = seen.table(which)
        flags = seen.rflags
        for name, flag in (("CF", r.FLAG_CF), ("ZF", r.FLAG_ZF), ("IF", r.FLAG_IF), ("AC", r.FLAG_AC)):
            self._values[name] = int(flags & flag != 0)
        self._values["IOPL"] = (flags & r.FLAG_IOPL) >> r.FLAG_IOPL_SHIFT
        self._values["CPL"] = seen.privilege
        stack = seen.gpr[r.RSP]
        self._values["TOP"] = _word(memory, stack, bits // 8) if 0 <= stack <= ROOM_SIZE - 8 else 0
        for size in (2, 4, 8):
            self._values[f"DATA:{size}"] = _word(memory, DATA, size)
        for size in (4, 8):
            self._values[f"DATA+2:{size}"] = _word(memory, DATA + 2, size)

    def value(self, name: str) -> int:
        """A register by its name, a flag, "CPL", "GDTR.base", "TOP" (of the stack) or "DATA:8".

        Raises KeyError for a name that nothing has.
        """
        return self._values[name]


def _word(memory: memoryview, address: int, size: int) -> int:
    return int.from_bytes(memory[address : address + size], "little")


class Bench:
    """A processor with a furnished room, on which cases are run one after the other, in 64- or in 32-bit mode."""

    def __init__(self, cpu: X86Engine, bits: int = 64) -> None:
        self._cpu = cpu
        self.bits = bits
        """Of the mode in which the next case is run: 64 or 32."""
        self._room = memoryview(mmap.mmap(-1, ROOM_SIZE))
        cpu.map_memory(0, self._room)

    def execute(self, case: Case, mode: Mode) -> Outcome:
        """Run a case from a freshly loaded state and return what was seen. Errors of the engine propagate."""
        cpu, room = self._cpu, self._room
        prelude = case.kernel_prelude if mode is Mode.KERNEL else b""
        stack = case.kernel_stack if mode is Mode.KERNEL else case.user_stack
        room[:] = bytes(ROOM_SIZE)
        furnish = room64.furnish if self.bits == 64 else room32.furnish
        furnish(room, prelude + case.code, case.data, stack)
        _prepare(cpu, case, mode, self.bits)
        cpu.code_changed(CODE, 0x1000)
        at = CODE + len(prelude)
        behind = at + len(case.code)
        outcome: list[Outcome] = []

        def handler(exit_: Exit) -> None:
            if not outcome:
                outcome.append(Outcome(_event(exit_, cpu.registers.rip, at, behind), cpu, room, self.bits))
            cpu.stop()

        cpu.run(handler)
        return outcome[0]


def _prepare(cpu: X86Engine, case: Case, mode: Mode, bits: int) -> None:
    """Load the whole state that a case begins with."""
    state = cpu.registers
    cpu.set_root(ROOT)
    long_mode = r.EFER_LME | r.EFER_LMA if bits == 64 else 0
    cpu.set_control(case.cr0, case.cr4, long_mode | r.EFER_NXE | r.EFER_SCE)
    place = room64 if bits == 64 else room32
    attributes_of = place.attributes_of
    code, data = place.SELECTORS[mode.value]
    for index in (r.ES, r.SS, r.DS):
        state.set_segment(index, data, 0, 0xFFFF_FFFF, attributes_of(data))
    for index in (r.FS, r.GS):
        state.set_segment(index, data, case.base, 0xFFFF_FFFF, attributes_of(data))
    state.set_segment(r.CS, code, 0, 0xFFFF_FFFF, attributes_of(code))
    for index, (selector, base, limit) in place.SYSTEM_DESCRIPTORS.items():
        state.set_segment(index, selector, base, limit, attributes_of(selector) | (0x200 if index == r.TR else 0))
    state.set_table(0, GDT, place.GDT_LIMIT)
    state.set_table(1, IDT, place.IDT_LIMIT)
    for index in range(16):
        state.gpr[index] = 0
    state.gpr[r.RAX] = DATA
    state.gpr[r.RSP] = STACK
    for index, value in case.gpr.items():
        state.gpr[index] = value
    state.rflags = case.rflags
    state.privilege = mode.value
    state.rip = CODE


def _event(exit_: Exit, rip: int, at: int, behind: int) -> Event:
    """What the first exit says of the instruction at `at`."""
    kind = exit_.kind
    if kind is ExitKind.FAULT:
        if exit_.vector == r.VECTOR_UD and rip == behind:
            return COMPLETES
        if exit_.vector == r.VECTOR_UD and rip == LAND:
            return ARRIVES
        if rip == at:
            known = r.EXCEPTIONS.get(exit_.vector)
            return exception(exit_.vector, exit_.error if known is not None and known.error_code else 0)
        return Event("elsewhere", exit_.vector, exit_.error)
    if kind is ExitKind.SOFTWARE_INTERRUPT:
        return software(exit_.vector)
    return exits(kind)


def prove(
    row: SensitiveInstruction,
    cases: Sequence[Case],
    departures: Mapping[tuple[str, Mode, int], Departure],
    bench: Bench,
) -> Proof:
    """Run all cases of a row in both modes. `departures` are by row name, mode and number of the case."""

    def execute(case: Case, mode: Mode, _names: tuple[str, ...]) -> Seen:
        outcome = bench.execute(case, mode)
        return Seen(outcome.event, outcome.value)

    modes = ((Mode.KERNEL, "kernel mode"), (Mode.USER, "user mode"))
    return judge(row, cases, departures, modes, execute)


def prove_rows(rows: Sequence[SensitiveInstruction], bits: int = 64) -> Iterator[Proof]:
    """Run rows of a mode's table on the embedded engine, in their order. Raises `EngineMissing`."""
    from emulator.engine.engines import open_unicorn

    if bits == 64:
        from emulator.isa.x86.proof_cases import CASES, DEPARTURES
    else:
        from emulator.isa.x86.proof_cases32 import CASES, DEPARTURES
    engine = open_unicorn()
    try:
        bench = Bench(engine, bits)
        for row in rows:
            yield prove(row, CASES[row.name], DEPARTURES, bench)
    finally:
        engine.close()
