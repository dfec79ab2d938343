"""Delivery of interrupts and exceptions in 32-bit protected mode and out of virtual-8086 mode.

Room: `emulator/isa/x86`. As `delivery.deliver`, for 8-byte gates of 16 and 32 bits and task gates (Intel SDM vol. 3A
6.11, 6.12 and 20.3): a frame without SS:ESP where the level stays, segment bases and 16-bit stacks obeyed.
"""

from emulator.isa.x86.descriptors import (
    ACCESSED,
    CODE,
    CONFORMING,
    PRESENT,
    SEGMENT,
    TYPE_TASK_GATE,
    legacy_gate_parts,
    segment_parts,
)
from emulator.isa.x86.processor import (
    CS,
    DS,
    ES,
    FS,
    GENERAL_PROTECTION,
    GS,
    INTERRUPT_FLAG,
    IO_PRIVILEGE,
    NESTED_TASK,
    RESUME_FLAG,
    SEGMENT_NOT_PRESENT,
    SS,
    TRAP_FLAG,
    VIRTUAL_8086,
    Fault,
    Processor,
)
from emulator.isa.x86.segments import mark_accessed, read_descriptor
from emulator.isa.x86.stack32 import MASK32, current, of_level
from emulator.isa.x86.tasks import enter_by_gate

_GATES = frozenset({0x6, 0x7, 0xE, 0xF})
_WIDE, _TRAP = 8, 1
_CLEARED = TRAP_FLAG | NESTED_TASK | RESUME_FLAG | VIRTUAL_8086
_INT_N = 2
"""Bytes of INT n, which virtual-8086 mode allows with IOPL 3 only; INT3 and INTO have one."""


def deliver(
    cpu: Processor,
    vector: int,
    error: int | None,
    *,
    software: bool = False,
    length: int = 0,
    resume: bool = False,
) -> None:
    """Enter the handler of `vector` (0..255); see `delivery.deliver`."""
    external = 0 if software else 1
    rflags = cpu.rflags
    virtual = rflags & VIRTUAL_8086
    if software and virtual and length == _INT_N and rflags & IO_PRIVILEGE != IO_PRIVILEGE:
        raise Fault(GENERAL_PROTECTION, 0)
    gate = _gate(cpu, vector, software, external)
    selector, offset, _, _ = legacy_gate_parts(gate)
    kind = gate >> 40 & 0xF
    back = cpu.rip + length & MASK32 if software else cpu.rip & MASK32
    if kind == TYPE_TASK_GATE:
        enter_by_gate(cpu, selector, back, error, external)
        return
    level = cpu.cpl
    base, limit, attributes = _handler_code(cpu, selector, level, virtual, external)
    new_level = level if attributes & CONFORMING else attributes >> 13 & 3
    size = 4 if kind & _WIDE else 2
    flags = rflags | RESUME_FLAG if resume else rflags
    stack = current(cpu, level == 3, external) if new_level == level else of_level(cpu, new_level, external)
    words: list[int] = []
    if new_level != level:
        if virtual:
            words += [cpu.segment(index)[0] for index in (GS, FS, DS, ES)]
        words += [cpu.segment(SS)[0], cpu.gpr[4] & MASK32]
    words += [flags, cpu.segment(CS)[0], back]
    words += [] if error is None else [error]
    if offset > limit:
        raise Fault(GENERAL_PROTECTION, external)
    stack.push(cpu, words, size)
    if not attributes & ACCESSED:
        attributes = mark_accessed(cpu, selector, attributes)

    # Nothing below can fault.
    cpu.rip = offset
    cpu.rflags = rflags & ~(_CLEARED | (0 if kind & _TRAP else INTERRUPT_FLAG))
    cpu.set_segment(CS, selector & 0xFFFC | new_level, base, limit, attributes)
    if new_level == level:
        stack.set_pointer(cpu)
        return
    stack.load(cpu)
    if virtual:
        for index in (ES, DS, FS, GS):
            cpu.set_segment(index, 0, 0, 0, 0)
    cpu.set_privilege(new_level)


def _gate(cpu: Processor, vector: int, software: bool, external: int) -> int:
    """The gate of `vector`, checked."""
    error = vector << 3 | 2 | external
    if (vector << 3) + 7 > cpu.idt_limit:
        raise Fault(GENERAL_PROTECTION, error)
    gate = cpu.read(cpu.idt_base + (vector << 3) & MASK32, 8)
    kind = gate >> 40 & 0x1F
    if kind not in _GATES and kind != TYPE_TASK_GATE:
        raise Fault(GENERAL_PROTECTION, error)
    if software and gate >> 45 & 3 < cpu.cpl:
        raise Fault(GENERAL_PROTECTION, vector << 3 | 2)
    if not gate >> 47 & 1:
        raise Fault(SEGMENT_NOT_PRESENT, error)
    return gate


def _handler_code(cpu: Processor, selector: int, level: int, virtual: int, external: int) -> tuple[int, int, int]:
    """Base, limit, attributes of the handler's code segment, checked."""
    error = selector & 0xFFFC
    if not error:
        raise Fault(GENERAL_PROTECTION, external)
    parts = segment_parts(read_descriptor(cpu, selector, GENERAL_PROTECTION, external))
    attributes = parts[2]
    dpl = attributes >> 13 & 3
    if attributes & (SEGMENT | CODE) != SEGMENT | CODE or dpl > level:
        raise Fault(GENERAL_PROTECTION, error | external)
    if not attributes & PRESENT:
        raise Fault(SEGMENT_NOT_PRESENT, error | external)
    if virtual and (attributes & CONFORMING or dpl):
        raise Fault(GENERAL_PROTECTION, error | external)
    return parts
