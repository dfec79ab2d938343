"""What a debugger knows of each instruction set: registers with their numbers, and how an address is translated.

Room: `bt/gdb`. A target is a table of rows; the description that gdb asks for is printed from it. Names and the order
of the standard features are gdb's manual's (Appendix G.5); what has no place there is the feature `retrap.system`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from emulator.errors import BadImage, UsageError
from paravirt.mmu.direct_views import DirectViews

if TYPE_CHECKING:
    from bt.session import Session


class Register(NamedTuple):
    """One register. `read` and `write` are given the processor: of the hypervisor's guest its virtual one, at full
    privilege the driver."""

    name: str
    bits: int
    feature: str
    """gdb's name of the group."""
    read: Callable[[Any], int]
    write: Callable[[Any, int], None] | None = None
    """None for what a debugger may not change."""
    type: str = ""
    """gdb's name of the type; by default an integer of so many bits."""
    number: int = -1
    """gdb's number of it; by default the one behind the row before."""


class Step(NamedTuple):
    """An entry of a page table, on the way to a page."""

    level: int
    physical: int
    """Where it lies."""
    value: int


class Walk(NamedTuple):
    """How an address is translated."""

    physical: int | None
    """Guest-physical address, None where nothing is mapped."""
    steps: tuple[Step, ...] = ()
    """Entries read, from the root on; empty where there are no tables, or they are not the hardware's."""


class Mapped(NamedTuple):
    """A page, of whatever size."""

    address: int
    """Guest-virtual."""
    physical: int
    size: int
    rights: str
    """Letters: r, w, x for the kernel, and u where user code has them too."""


@dataclass(frozen=True, slots=True)
class Target:
    """An instruction set as a debugger sees it."""

    architecture: str
    """As gdb calls it."""
    registers: tuple[Register, ...]
    walk: Callable[[Any, int], Walk]
    """Of a driver and a guest-virtual address; changes nothing."""
    pc: str
    mappings: Callable[[Any], Iterator[Mapped]] | None = None
    """Of a driver: all that the guest's tables map, ascending; None where there are no tables to be read."""
    types: str = ""
    """Definitions of types that registers have, in XML, for the first feature that needs them."""
    word: int = 8
    """Bytes of an address."""
    byte_order: str = "little"
    by_number: dict[int, Register] = field(default_factory=dict)
    by_name: dict[str, Register] = field(default_factory=dict)

    def __post_init__(self) -> None:
        number = 0
        for row in self.registers:
            number = row.number if row.number >= 0 else number
            self.by_number[number] = row
            self.by_name[row.name] = row
            number += 1
        ordered = sorted(self.by_number.items())
        self.by_number.clear()
        self.by_number.update(ordered)

    def processor(self, driver: Any) -> Any:
        """What the rows of `registers` read."""
        return getattr(driver, "vcpu", driver)

    def read(self, driver: Any, row: Register) -> bytes:
        """The bytes of a register, as gdb has them."""
        return self.read_all(driver, (row,))

    def read_all(self, driver: Any, rows: Iterable[Register]) -> bytes:
        """The bytes of several, one behind the other."""
        processor = self.processor(driver)
        order: Literal["big", "little"] = "big" if self.byte_order == "big" else "little"
        return b"".join((row.read(processor) & (1 << row.bits) - 1).to_bytes(row.bits // 8, order) for row in rows)

    def write(self, driver: Any, row: Register, data: bytes) -> None:
        """Set a register. Raises `UsageError` where it cannot be, or has another size."""
        if row.write is None:
            raise UsageError(f"the register {row.name} is not a debugger's to change")
        if len(data) != row.bits // 8:
            raise UsageError(f"{row.name} has {row.bits // 8} bytes, not {len(data)}")
        row.write(self.processor(driver), int.from_bytes(data, "big" if self.byte_order == "big" else "little"))

    def description(self) -> str:
        """The target description, XML."""
        return "".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0">'
        yield f"<architecture>{self.architecture}</architecture>"
        types = self.types
        order = {row.feature: place for place, row in reversed(list(enumerate(self.registers)))}
        listed = sorted(self.by_number.items(), key=lambda pair: (order[pair[1].feature], pair[0]))
        for feature, rows in groupby(listed, key=lambda pair: pair[1].feature):
            yield f'<feature name="{feature}">'
            if types and feature in types.split("|")[0].split():
                yield types.split("|", 1)[1]
                types = ""
            for number, row in rows:
                kind = f' type="{row.type}"' if row.type else ""
                yield f'<reg name="{row.name}" bitsize="{row.bits}" regnum="{number}"{kind}/>'
            yield "</feature>"
        yield "</target>"


def general(number: int) -> tuple[Callable[[Any], int], Callable[[Any, int], None]]:
    """A general register: how it is read and written."""

    def write(cpu: Any, value: int) -> None:
        cpu.registers.gpr[number] = value

    return lambda cpu: int(cpu.registers.gpr[number]), write


def of_either(name: str) -> Callable[[Any], int]:
    """A value of the virtual processor, or where it has none of that name, of the real one."""
    return lambda cpu: int(getattr(cpu, name, None) or getattr(cpu.registers, name, None) or 0)


def by_frame(driver: Any, address: int) -> Walk:
    """Translate by the hypervisor's own means; at full privilege nothing is known."""
    shadow = getattr(driver, "shadow", None)
    frame = shadow.frame_of(address) if shadow is not None else -1
    if frame < 0:
        return Walk(None)
    return Walk(int(driver.machine.memory.base + (frame << 12) | address & 0xFFF))


class _GuestsTables:
    """Memory as a guest reads its page tables that a processor walks: they lead to machine frames there."""

    def __init__(self, memory: Any, tables: Any) -> None:
        self.base, self.end = memory.base, memory.end
        self._tables = tables

    def read(self, at: int, size: int) -> int:
        """The entry at a guest-physical address, in the guest's own numbers of frames; 0 for one that is not its."""
        tables = self._tables
        return int(tables.read(tables.machine_frame(at >> 12), (at & 0xFFF) // size))


def table_memory(driver: Any) -> Any:
    """Where a walk reads a guest's page tables: its memory, or with direct paging what it would read there."""
    memory = driver.machine.memory
    shadow = getattr(driver, "shadow", None)
    return _GuestsTables(memory, shadow.tables) if isinstance(shadow, DirectViews) else memory


TARGETS: Final = {
    "x86-64": ("bt.gdb.targets.x86", "X86_64"),
    "i386": ("bt.gdb.targets.x86", "I386"),
    "aarch64": ("bt.gdb.targets.arm", "AARCH64"),
    "armv7": ("bt.gdb.targets.arm", "ARMV7"),
    "mips32": ("bt.gdb.targets.mips", "MIPS32"),
}
"""Where each instruction set's target is: module and name."""


def target_of(isa: str) -> Target:
    """The target of an instruction set. Raises `UsageError` where there is none."""
    if isa not in TARGETS:
        raise UsageError(f"{isa} guests cannot be debugged yet; those of {', '.join(TARGETS)} can be")
    module, name = TARGETS[isa]
    target = getattr(importlib.import_module(module), name)
    assert isinstance(target, Target)
    return target


def target_for(session: Session) -> Target:
    """The target of a session's guest, in its byte order."""
    target = target_of(session.machine.platform.isa)
    order = session.image.byte_order
    return target if order == target.byte_order else replace(target, byte_order=order, by_number={}, by_name={})


def translation(session: Session) -> Callable[[int], int | None]:
    """How a session's guest translates addresses; before it has tables of its own, by where its image was placed."""
    target, driver = target_of(session.machine.platform.isa), session.driver

    def translate(address: int) -> int | None:
        found = target.walk(driver, address).physical
        if found is not None:
            return found
        try:
            return session.physical(address)
        except BadImage:
            return None

    return translate
