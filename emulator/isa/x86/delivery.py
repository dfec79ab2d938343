"""Delivery of interrupts and exceptions, by the software's own IDT and TSS; `deliver` is long mode's.

Room: `emulator/isa/x86`. What a processor does between an event and the first instruction of its
handler: Intel SDM vol. 3A 6.14 and vol. 2 INT n, AMD APM vol. 2 8.9; double faults by SDM table 6-5.
It knows a `Processor` and nothing of who asks: `deliver` is in the path of every interrupt. Protected mode's is
`delivery32.deliver`; the functions for callers choose by EFER.LMA.
"""

from emulator.isa.x86.delivery32 import deliver as deliver32
from emulator.isa.x86.descriptors import (
    ACCESSED,
    CODE,
    CONFORMING,
    DEFAULT_BIG,
    FLAT_DATA,
    FLAT_LIMIT,
    LONG,
    PRESENT,
    SEGMENT,
    gate_parts,
    segment_parts,
)
from emulator.isa.x86.processor import (
    CS,
    DEBUG_EXCEPTION,
    DOUBLE_FAULT,
    GENERAL_PROTECTION,
    INTERRUPT_FLAG,
    INVALID_OPCODE,
    INVALID_TSS,
    LONG_MODE,
    MASK64,
    NESTED_TASK,
    PAGE_FAULT,
    RESUME_FLAG,
    SEGMENT_NOT_PRESENT,
    SS,
    STACK_FAULT,
    TR,
    TRAP_FLAG,
    VIRTUAL_8086,
    Fault,
    Processor,
    TripleFault,
)
from emulator.isa.x86.segments import mark_accessed, read_descriptor

CONTRIBUTORY = frozenset({0, 10, 11, 12, 13, 21})
"""#DE #TS #NP #SS #GP #CP: two of them make a double fault (SDM table 6-4)."""
PAGE_FAULTS = frozenset({14, 20})
"""#PF and #VE: one of them followed by itself or a contributory exception makes a double fault."""

FAULT_CLASS = frozenset({0, 5, 6, 7, 10, 11, 12, 13, 14, 16, 17, 19, 20, 21})
"""Exceptions that restart their instruction: the pushed RFLAGS has RF set (SDM vol. 3B 17.3.1.1)."""
WITH_ERROR = frozenset({8, 10, 11, 12, 13, 14, 17, 21})
"""Exceptions with an error code."""

_KEEP = MASK64 & ~(TRAP_FLAG | NESTED_TASK | RESUME_FLAG | VIRTUAL_8086)
HANDLER_FLAGS = (_KEEP & ~INTERRUPT_FLAG, _KEEP)
"""What an interrupt gate and a trap gate leave of RFLAGS."""

_HOLE = 0x8000_0000_0000
"""`address + _HOLE >> 48 & 0xFFFF` is 0 for canonical addresses only."""


def interrupt(cpu: Processor, vector: int) -> None:
    """An external interrupt: deliver it, and what its delivery raises. May raise `TripleFault`."""
    try:
        (deliver if cpu.efer & LONG_MODE else deliver32)(cpu, vector, None)
    except Fault as fault:
        raise_exception(cpu, fault)


def software_interrupt(cpu: Processor, vector: int, length: int) -> None:
    """INT n, INT3 or INTO of `length` bytes at RIP, and what it raises. May raise `TripleFault`."""
    try:
        (deliver if cpu.efer & LONG_MODE else deliver32)(cpu, vector, None, software=True, length=length)
    except Fault as fault:
        raise_exception(cpu, fault)


def undefined_or(cpu: Processor, code: bytes) -> Fault | None:
    """What to raise instead of #UD where an engine takes `code` at RIP for an undefined instruction, or None.

    INT1 (F1) is a trap: #DB behind it. RDPMC (0F 33) is #GP, as no counter is enabled.
    """
    if code[:1] == b"\xf1":
        cpu.rip = cpu.rip + 1 & MASK64
        return Fault(DEBUG_EXCEPTION)
    if code[:2] == b"\x0f\x33":
        return Fault(GENERAL_PROTECTION, 0)
    return None


def protected_or(code: bytes, system_enter: bool) -> Fault | None:
    """What to raise instead of #GP(0) where an engine refuses `code` of user mode as privileged, or None.

    VMCALL without a hypervisor to call, MONITOR and MWAIT are #UD there (SDM vol. 2 and 3), as SYSENTER and SYSEXIT are
    on a processor that does not say to have them (`system_enter`).
    """
    undefined = code[:2] == b"\x0f\x01" and code[2:3] in (b"\xc1", b"\xc8", b"\xc9")
    if undefined or (not system_enter and code[:2] in (b"\x0f\x34", b"\x0f\x35")):
        return Fault(INVALID_OPCODE)
    return None


def raise_exception(cpu: Processor, fault: Fault) -> None:
    """Deliver an exception; a fault met on the way follows the double-fault table.

    Sets CR2 for every page fault met. Raises `TripleFault` when a double fault cannot be delivered.
    """
    enter = deliver if cpu.efer & LONG_MODE else deliver32
    while True:
        vector, error = fault.vector, fault.error
        if vector == PAGE_FAULT:
            cpu.cr2 = fault.address
        if error is None and vector in WITH_ERROR:
            error = 0
        try:
            enter(cpu, vector, error, resume=vector in FAULT_CLASS)
            return
        except Fault as second:
            if vector == DOUBLE_FAULT:
                raise TripleFault(f"{second} while a double fault was delivered at {cpu.rip:#x}") from None
            fault = _combine(cpu, vector, second)


def _combine(cpu: Processor, first: int, second: Fault) -> Fault:
    """What is delivered when `second` is met during the delivery of vector `first`."""
    severe = second.vector in CONTRIBUTORY or second.vector in PAGE_FAULTS
    if (severe and first in PAGE_FAULTS) or (first in CONTRIBUTORY and second.vector in CONTRIBUTORY):
        if second.vector == PAGE_FAULT:
            cpu.cr2 = second.address
        return Fault(DOUBLE_FAULT, 0)
    return second


def deliver(
    cpu: Processor,
    vector: int,
    error: int | None,
    *,
    software: bool = False,
    length: int = 0,
    resume: bool = False,
) -> None:
    """Enter the handler of `vector` (0..255), pushing `error` unless it is None.

    `software` is INT n: the gate's DPL is checked and the pushed RIP is behind the instruction of
    `length` bytes. `resume` sets RF in the pushed flags (`raise_exception` does so for faults).
    Raises `Fault` for whatever delivery meets; registers are then unchanged.
    """
    external = 0 if software else 1
    handler, kind = _gate(cpu, vector, software, external)
    selector, offset, stack, _ = handler
    level = cpu.cpl
    attributes, base, limit = _handler_code(cpu, selector, level, external)
    new_level = level if attributes & CONFORMING else attributes >> 13 & 3

    gpr = cpu.gpr
    rsp = gpr[4]
    if stack:
        top = _task_stack(cpu, 28 + 8 * stack, external)
    elif new_level != level:
        top = _task_stack(cpu, 4 + 8 * new_level, external)
    else:
        top = rsp
    top &= 0xFFFF_FFFF_FFFF_FFF0
    if offset + _HOLE >> 48 & 0xFFFF:
        raise Fault(GENERAL_PROTECTION, external)

    rflags = cpu.rflags
    bottom = top - (40 if error is None else 48)
    # A frame that wraps below address 0 is as legal as any; one that touches the hole is not.
    if bottom + _HOLE >> 48 & 0xFFFF or top - 1 + _HOLE >> 48 & 0xFFFF:
        raise Fault(STACK_FAULT, external)
    write = cpu.write if new_level < 3 else cpu.write_user
    write(top - 8 & MASK64, 8, cpu.segment(SS)[0])
    write(top - 16 & MASK64, 8, rsp)
    write(top - 24 & MASK64, 8, rflags | RESUME_FLAG if resume else rflags)
    write(top - 32 & MASK64, 8, cpu.segment(CS)[0])
    write(top - 40 & MASK64, 8, cpu.rip + length & MASK64 if software else cpu.rip)
    if error is not None:
        write(top - 48 & MASK64, 8, error)
    if not attributes & ACCESSED:
        attributes = mark_accessed(cpu, selector, attributes)

    # Nothing below can fault.
    cpu.rip = offset
    cpu.rflags = rflags & HANDLER_FLAGS[kind]
    gpr[4] = bottom & MASK64
    cpu.set_segment(CS, selector & 0xFFFC | new_level, base, limit, attributes)
    if new_level != level:
        cpu.set_segment(SS, new_level, 0, FLAT_LIMIT, FLAT_DATA | new_level << 13)
        cpu.set_privilege(new_level)


def _gate(cpu: Processor, vector: int, software: bool, external: int) -> tuple[tuple[int, int, int, int], int]:
    """The gate of `vector` in parts, and 1 for a trap gate, 0 for an interrupt gate."""
    index = vector << 4
    address = cpu.idt_base + index
    if index + 15 > cpu.idt_limit or address + _HOLE >> 48 & 0xFFFF or address + 15 + _HOLE >> 48 & 0xFFFF:
        raise Fault(GENERAL_PROTECTION, vector << 3 | 2 | external)
    low = cpu.read(address & MASK64, 8)
    high = cpu.read(address + 8 & MASK64, 8)
    if low >> 41 & 0xF != 7:  # S = 0 and type 14 or 15
        raise Fault(GENERAL_PROTECTION, vector << 3 | 2 | external)
    if software and low >> 45 & 3 < cpu.cpl:
        raise Fault(GENERAL_PROTECTION, vector << 3 | 2)
    if not low >> 47 & 1:
        raise Fault(SEGMENT_NOT_PRESENT, vector << 3 | 2 | external)
    return gate_parts(low, high), low >> 40 & 1


def _handler_code(cpu: Processor, selector: int, level: int, external: int) -> tuple[int, int, int]:
    """Attributes, base, limit of the handler's code segment, checked."""
    error = selector & 0xFFFC
    if not error:
        raise Fault(GENERAL_PROTECTION, external)
    base, limit, attributes = segment_parts(read_descriptor(cpu, selector, GENERAL_PROTECTION, external))
    if attributes & (SEGMENT | CODE) != SEGMENT | CODE or attributes >> 13 & 3 > level:
        raise Fault(GENERAL_PROTECTION, error | external)
    if not attributes & PRESENT:
        raise Fault(SEGMENT_NOT_PRESENT, error | external)
    if attributes & (LONG | DEFAULT_BIG) != LONG:
        raise Fault(GENERAL_PROTECTION, error | external)
    return attributes, base, limit


def _task_stack(cpu: Processor, offset: int, external: int) -> int:
    """The stack pointer at `offset` of the TSS (vol. 3A figure 7-11)."""
    selector, base, limit, _ = cpu.segment(TR)
    address = base + offset
    if offset + 7 > limit or address + _HOLE >> 48 & 0xFFFF or address + 7 + _HOLE >> 48 & 0xFFFF:
        raise Fault(INVALID_TSS, selector & 0xFFFC | external)
    return cpu.read(address & MASK64, 8)


def task_stack(cpu: Processor, level: int) -> int:
    """The stack pointer that the TSS holds for an entry to `level` (0..2) by a call gate."""
    return _task_stack(cpu, 4 + 8 * level, 0)
