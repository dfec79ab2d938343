"""Proof by running: executes the examples of the ARMv7 table in kernel and in user mode and compares.

Room: `emulator/isa/arm`. Uses any engine that runs at full privilege. What must be seen is data (`proof_cases`), by
the manual; where the engine departs from it, `DEPARTURES` there says so, and a departure that is not needed refutes
the row as a missing one does. Kernel mode is Supervisor mode in Non-secure state.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

from emulator.engine import arm
from emulator.engine.arm import ArmEngine
from emulator.engine.exit import Exit, ExitKind
from emulator.isa.proof import Proof, Seen, judge
from emulator.isa.sensitive import SensitiveInstruction

# The room: three megabytes of memory, each a section of its own.
SIZE: Final = 0x30_0000
ROOT: Final = 0x4000
CODE: Final = 0x8000
LAND: Final = 0x9000
"""Where returns go: nothing but UDF in both states."""
DATA: Final = 0xA000
STACK: Final = 0xB000
USER_STACK: Final = 0xC000
OWN: Final = 0x10_0000
"""The guest kernel's own page: in kernel mode only the kernel may touch it; in user mode it is mapped as a hypervisor
maps it for a deprivileged kernel, for user mode."""
TRAP_A32: Final = 0xE7F000F0
TRAP_T32: Final = 0xDE00

SCTLR: Final = 0x00C5_0079
"""MMU, caches and alignment bits as the room has them: M, C, I, U, XP and the bits that read as one."""
_ALL, _KERNEL_ONLY = 0xC02, 0x402
_EXCEPTIONS: Final = {
    arm.UNDEFINED: "undefined",
    arm.PREFETCH_ABORT: "prefetch abort",
    arm.DATA_ABORT: "data abort",
}


class Mode(Enum):
    """The privilege at which a case is run."""

    KERNEL = arm.SVC
    USER = arm.USR


class Event(NamedTuple):
    """How the execution of an instruction ended."""

    what: str
    """"completes", "arrives" (at the landing place), "exception", "unpredictable", or an exit's name."""
    vector: int = 0
    """Of an exception."""
    status: int = 0
    """Fault status of an abort."""

    def __str__(self) -> str:
        if self.what != "exception":
            return self.what
        name = _EXCEPTIONS.get(self.vector, f"exception {self.vector}")
        return f"{name} ({self.status:#x})" if self.status else name


COMPLETES: Final = Event("completes")
"""Execution went on behind the instruction."""
ARRIVES: Final = Event("arrives")
"""Execution went on at `LAND`."""
UNPREDICTABLE: Final = Event("unpredictable")
"""A claim that the manual leaves everything open; what an engine does then is a departure."""
UNDEFINED: Final = Event("exception", arm.UNDEFINED)
CALLS: Final = Event("system_call")
HALTS: Final = Event("halt")


def aborts(status: int) -> Event:
    """The instruction raised a data abort."""
    return Event("exception", arm.DATA_ABORT, status)


@dataclass(frozen=True, slots=True)
class Claim:
    """What must be seen after the instruction."""

    event: Event
    shows: Mapping[str, int] = field(default_factory=dict)
    """Names as `read` knows them, and what they must be."""


@dataclass(frozen=True, slots=True)
class Case:
    """One instruction with a beginning, and what the manual says of it in both modes."""

    code: bytes
    """The instruction alone."""
    kernel: Claim
    user: Claim
    thumb: bool = False
    gpr: Mapping[int, int] = field(default_factory=dict)
    """R0 to R14; R1 is DATA, SP is STACK and LR is LAND unless named here."""
    data: Sequence[int] = ()
    """Words from DATA on."""
    own: Sequence[int] = ()
    """Words from OWN on."""
    cpsr: int = 0
    """Bits of CPSR beside mode and state."""
    spsr: int = arm.USR
    """SPSR of Supervisor mode."""
    system: Mapping[str, int] = field(default_factory=dict)
    """System registers that begin otherwise than the room has them."""
    absent: bool = False
    """The engine's processor has no such register or instruction: both claims are the manual's for such a one."""


class Departure(NamedTuple):
    """An engine does something else than the manual says."""

    event: Event
    reason: str
    shows: Mapping[str, int] = {}


class Outcome(NamedTuple):
    """What was seen after an instruction."""

    event: Event
    values: Mapping[str, int]


_BANKS: Final = {"usr": arm.USR, "svc": arm.SVC, "irq": arm.IRQ}
_BITS: Final = {"I": 7, "F": 6, "A": 8, "T": 5, "E": 9, "Z": 30, "C": 29}


def read(name: str, cpu: ArmEngine, memory: memoryview) -> int:
    """A value by its name: "R0", "MODE", a bit of CPSR ("I"), "SPSR", "SP_usr", "DATA+4", "OWN+0", or a system
    register's. Raises KeyError for a name that nothing has."""
    registers = cpu.registers
    if name.startswith("R") and name[1:].isdigit():
        return int(registers.gpr[int(name[1:])])
    if name == "MODE":
        return registers.cpsr & 0x1F
    if name in _BITS:
        return registers.cpsr >> _BITS[name] & 1
    if name == "SPSR":
        return registers.spsr
    if name[:3] in ("SP_", "LR_") and name[3:] in _BANKS:
        mode, which = _BANKS[name[3:]], int(name[:3] == "LR_")
        if mode == registers.cpsr & 0x1F:
            return int(registers.gpr[13 + which])
        return registers.banked(mode)[which]
    place, _, offset = name.partition("+")
    if place in ("DATA", "OWN"):
        at = (DATA if place == "DATA" else OWN) + int(offset)
        return int.from_bytes(memory[at : at + 4], "little")
    return registers.system(name)


class Bench:
    """A processor with a furnished room, on which cases are run one after the other."""

    def __init__(self, cpu: ArmEngine) -> None:
        self._cpu = cpu
        self._room = memoryview(mmap.mmap(-1, SIZE))
        cpu.map_memory(0, self._room)

    def execute(self, case: Case, mode: Mode, names: Sequence[str] = ()) -> Outcome:
        """Run a case from a freshly loaded state and return what was seen. Errors of the engine propagate."""
        cpu = self._cpu
        self._furnish(case, mode)
        self._prepare(case, mode)
        behind = CODE + len(case.code)
        outcome: list[Outcome] = []

        def handler(exit_: Exit) -> None:
            if not outcome:
                event = _event(exit_, cpu.registers.pc, behind)
                outcome.append(Outcome(event, {name: read(name, cpu, self._room) for name in names}))
            cpu.stop()

        cpu.run(handler)
        return outcome[0]

    def _furnish(self, case: Case, mode: Mode) -> None:
        room = self._room
        words = room.cast("I")
        for section in range(3):
            words[ROOT // 4 + section] = section << 20 | _ALL
        if mode is Mode.KERNEL:
            words[ROOT // 4 + (OWN >> 20)] = OWN | _KERNEL_ONLY
        trap = TRAP_T32.to_bytes(2, "little") * 2 if case.thumb else TRAP_A32.to_bytes(4, "little")
        room[CODE : CODE + 0x1000] = trap * 0x400
        room[LAND : LAND + 0x1000] = trap * 0x400
        room[CODE : CODE + len(case.code)] = case.code
        room[DATA : DATA + 0x100] = bytes(0x100)
        room[OWN : OWN + 0x100] = bytes(0x100)
        for place, values in ((DATA, case.data), (OWN, case.own)):
            for number, value in enumerate(values):
                words[place // 4 + number] = value

    def _prepare(self, case: Case, mode: Mode) -> None:
        """Load the whole state that a case begins with."""
        cpu, registers = self._cpu, self._cpu.registers
        registers.cpsr = arm.SVC | 0xC0
        begin = {
            "TTBCR": 0,
            "TTBR1": ROOT,
            "DACR": 1,
            "CPACR": 0x00F0_0000,
            "CONTEXTIDR": 0,
            "VBAR": 0,
            "CNTKCTL": 0,
            "PMUSERENR": 0,
            "TPIDRURW": 0x111,
            "TPIDRURO": 0x222,
            "TPIDRPRW": 0x333,
            "TEECR": 0,
            "FCSEIDR": 0,
            **case.system,
        }
        for name, value in begin.items():
            registers.set_system(name, value)
        registers.set_system("SCTLR", SCTLR)
        registers.fpexc = 0x4000_0000
        cpu.set_root(ROOT)
        cpu.flush_code()
        registers.set_banked(arm.USR, USER_STACK, 0x777, 0)
        registers.set_banked(arm.IRQ, 0x888, 0x999, arm.USR)
        registers.spsr = case.spsr
        registers.gpr[13], registers.gpr[14] = STACK, LAND
        registers.cpsr = mode.value | case.cpsr | (0x20 if case.thumb else 0)
        for number in range(13):
            registers.gpr[number] = 0
        registers.gpr[1], registers.gpr[13], registers.gpr[14] = DATA, STACK, LAND
        for number, value in case.gpr.items():
            registers.gpr[number] = value
        registers.clear_exclusive()
        registers.pc = CODE


def _event(exit_: Exit, pc: int, behind: int) -> Event:
    """What the first exit says of the instruction at CODE."""
    kind = exit_.kind
    if kind is ExitKind.FAULT:
        if exit_.vector == arm.UNDEFINED and pc == behind:
            return COMPLETES
        if exit_.vector == arm.UNDEFINED and pc == LAND:
            return ARRIVES
        if pc == CODE:
            return Event("exception", exit_.vector, 0 if exit_.vector == arm.UNDEFINED else exit_.error)
        return Event("elsewhere", exit_.vector, pc)
    if kind in (ExitKind.SYSTEM_CALL, ExitKind.HALT) and pc != behind:
        return Event("elsewhere", kind, pc)
    return Event(kind.name.lower())


def prove(
    row: SensitiveInstruction,
    cases: Sequence[Case],
    departures: Mapping[tuple[str, Mode, int], Departure],
    bench: Bench,
) -> Proof:
    """Run all cases of a row in both modes. `departures` are by row name, mode and number of the case."""

    def execute(case: Case, mode: Mode, names: tuple[str, ...]) -> Seen:
        outcome = bench.execute(case, mode, names)
        return Seen(outcome.event, outcome.values.__getitem__)

    modes = ((Mode.KERNEL, "kernel mode"), (Mode.USER, "user mode"))
    return judge(row, cases, departures, modes, execute)


def prove_rows(rows: Sequence[SensitiveInstruction]) -> Iterator[Proof]:
    """Run rows of the table on the embedded engine, in their order. Raises `EngineMissing`."""
    from emulator.engine.engines import open_unicorn_arm
    from emulator.isa.arm.proof_cases import DEPARTURES, cases_of

    engine = open_unicorn_arm()
    try:
        bench = Bench(engine)
        for row in rows:
            yield prove(row, cases_of(row), DEPARTURES, bench)
    finally:
        engine.close()
