"""Task switches of 32-bit protected mode: by task gate, by far transfer to a TSS, and back by IRET.

Room: `emulator/isa/x86`. Intel SDM vol. 3A 7.3 and figure 7-2. Kernels use them for double faults. Only 32-bit
task-state segments are switched to or from; a 16-bit one raises #TS, since nothing runs that has one.
"""

from __future__ import annotations

from enum import Enum

from emulator.isa.x86.descriptors import (
    BUSY,
    CODE,
    CONFORMING,
    PRESENT,
    READABLE,
    SEGMENT,
    TYPE_LDT,
    TYPE_TSS,
    TYPE_TSS_BUSY,
    WRITABLE,
    segment_parts,
)
from emulator.isa.x86.processor import (
    CS,
    DS,
    ES,
    FS,
    GENERAL_PROTECTION,
    GS,
    INVALID_TSS,
    LDTR,
    NESTED_TASK,
    SEGMENT_NOT_PRESENT,
    SS,
    STACK_FAULT,
    TR,
    VIRTUAL_8086,
    Fault,
    Processor,
)
from emulator.isa.x86.segments import descriptor_address, load_virtual_8086, mark_accessed
from emulator.isa.x86.stack32 import MASK32, current

_LEAST_LIMIT = 0x67
_CR3, _EIP, _EFLAGS, _REGISTERS, _SELECTORS, _LDT = 0x1C, 0x20, 0x24, 0x28, 0x48, 0x60
_ORDER = (ES, CS, SS, DS, FS, GS)
_FLAGS = 0x3F_7FD7


class Way(Enum):
    """How a task is entered."""

    JUMP = "jump"
    CALL = "call"
    """CALL, an interrupt or an exception: the new task can return."""
    RETURN = "return"
    """IRET with NT set."""


def enter_by_gate(cpu: Processor, selector: int, back: int, error: int | None, external: int) -> None:
    """An interrupt or exception through a task gate: the handler is a task, which finds `error` on its stack."""
    switch(cpu, selector, Way.CALL, back, external)
    if error is not None:
        stack = current(cpu, cpu.cpl == 3, external)
        stack.push(cpu, (error,), 4)
        stack.set_pointer(cpu)


def return_from_task(cpu: Processor) -> None:
    """IRET with NT set: back to the task that the current one's TSS links to."""
    _, base, limit, _ = cpu.segment(TR)
    if limit < _LEAST_LIMIT:
        raise Fault(INVALID_TSS, cpu.segment(TR)[0] & 0xFFFC)
    # RIP is IRET's own; where the task resumes if it is ever entered again is behind it (one byte).
    switch(cpu, cpu.read(base, 2), Way.RETURN, cpu.rip + 1 & MASK32)


def switch(cpu: Processor, selector: int, way: Way, back: int, external: int = 0) -> None:
    """Leave the current task, to be resumed at `back`, for the one whose TSS `selector` names.

    Faults before the switch leave the processor as it was; those of the new task's segments are raised in it.
    """
    vector = INVALID_TSS if way is Way.RETURN else GENERAL_PROTECTION
    base, limit, attributes = _task(cpu, selector, way, vector, external)
    old_selector, old_base, _, _ = cpu.segment(TR)
    new = [cpu.read(base + at & MASK32, 4) for at in range(0, _LEAST_LIMIT, 4)]
    flags = cpu.rflags & ~(NESTED_TASK if way is Way.RETURN else 0)
    _save(cpu, old_base, back, flags)
    if way is not Way.CALL:
        _mark(cpu, old_selector, False)
    if way is not Way.RETURN:
        _mark(cpu, selector, True)
    rflags = new[_EFLAGS >> 2] & _FLAGS | 2
    if way is Way.CALL:
        cpu.write(base, 2, old_selector)
        rflags |= NESTED_TASK
    cpu.set_segment(TR, selector, base, limit, attributes | BUSY)
    cpu.task_switched(new[_CR3 >> 2])
    cpu.rip = new[_EIP >> 2]
    for number in range(8):
        cpu.gpr[number] = new[(_REGISTERS >> 2) + number]
    selectors = [new[(_SELECTORS >> 2) + number] & 0xFFFF for number in range(6)]
    _load(cpu, rflags, selectors, new[_LDT >> 2] & 0xFFFF, external)


def _task(cpu: Processor, selector: int, way: Way, vector: int, external: int) -> tuple[int, int, int]:
    """Base, limit, attributes of the TSS to switch to, checked."""
    error = selector & 0xFFFC | external
    address = descriptor_address(cpu, selector) if selector & 0xFFFC and not selector & 4 else None
    if address is None:
        raise Fault(vector, error)
    base, limit, attributes = segment_parts(cpu.read(address, 8))
    wanted = TYPE_TSS_BUSY if way is Way.RETURN else TYPE_TSS
    if attributes & SEGMENT or attributes >> 8 & 0xF != wanted:
        raise Fault(vector, error)
    if not attributes & PRESENT:
        raise Fault(SEGMENT_NOT_PRESENT, error)
    if limit < _LEAST_LIMIT:
        raise Fault(INVALID_TSS, error)
    return base, limit, attributes


def _save(cpu: Processor, base: int, back: int, flags: int) -> None:
    """The state that leaves goes into its TSS."""
    cpu.write(base + _EIP & MASK32, 4, back)
    cpu.write(base + _EFLAGS & MASK32, 4, flags & MASK32)
    for number in range(8):
        cpu.write(base + _REGISTERS + 4 * number & MASK32, 4, cpu.gpr[number] & MASK32)
    for number, index in enumerate(_ORDER):
        cpu.write(base + _SELECTORS + 4 * number & MASK32, 2, cpu.segment(index)[0])


def _mark(cpu: Processor, selector: int, busy: bool) -> None:
    """Set or clear the busy bit of a TSS's descriptor."""
    address = descriptor_address(cpu, selector)
    if address is not None:
        kind = cpu.read(address + 5 & MASK32, 1)
        cpu.write(address + 5 & MASK32, 1, kind | BUSY >> 8 if busy else kind & ~(BUSY >> 8))


def _load(cpu: Processor, rflags: int, selectors: list[int], ldt: int, external: int) -> None:
    """Flags, LDT and segment registers of the new task; a selector that cannot be loaded is #TS in it."""
    cpu.set_segment(LDTR, 0, 0, 0, 0)
    for index in (ES, SS, DS, FS, GS):
        cpu.set_segment(index, 0, 0, 0, 0)
    level = 3 if rflags & VIRTUAL_8086 else selectors[1] & 3
    cpu.set_privilege(level)
    cpu.rflags = rflags
    if ldt & 0xFFFC:
        base, limit, attributes = _descriptor(cpu, ldt, external)
        if ldt & 4 or attributes & SEGMENT or attributes >> 8 & 0xF != TYPE_LDT or not attributes & PRESENT:
            raise Fault(INVALID_TSS, ldt & 0xFFFC | external)
        cpu.set_segment(LDTR, ldt, base, limit, attributes)
    if rflags & VIRTUAL_8086:
        for index, selector in zip(_ORDER, selectors, strict=True):
            load_virtual_8086(cpu, index, selector)
        return
    for index in (CS, SS, DS, ES, FS, GS):
        _load_one(cpu, index, selectors[_ORDER.index(index)], level, external)


def _load_one(cpu: Processor, index: int, selector: int, level: int, external: int) -> None:
    error = selector & 0xFFFC
    if not error:
        if index in (CS, SS):
            raise Fault(INVALID_TSS, external)
        cpu.set_segment(index, selector, 0, 0, 0)
        return
    base, limit, attributes = _descriptor(cpu, selector, external)
    dpl, rpl = attributes >> 13 & 3, selector & 3
    code = attributes & (SEGMENT | CODE) == SEGMENT | CODE
    conforming = code and attributes & CONFORMING
    if index == CS:
        good = code and (dpl <= rpl if conforming else dpl == rpl)
    elif index == SS:
        good = attributes & (SEGMENT | CODE | WRITABLE) == SEGMENT | WRITABLE and dpl == rpl == level
    else:
        usable = attributes & SEGMENT and (not code or attributes & READABLE)
        good = bool(usable) and (bool(conforming) or (dpl >= level and dpl >= rpl))
    if not good:
        raise Fault(INVALID_TSS, error | external)
    if not attributes & PRESENT:
        raise Fault(STACK_FAULT if index == SS else SEGMENT_NOT_PRESENT, error | external)
    cpu.set_segment(index, selector, base, limit, mark_accessed(cpu, selector, attributes))


def _descriptor(cpu: Processor, selector: int, external: int) -> tuple[int, int, int]:
    address = descriptor_address(cpu, selector)
    if address is None:
        raise Fault(INVALID_TSS, selector & 0xFFFC | external)
    return segment_parts(cpu.read(address, 8))
