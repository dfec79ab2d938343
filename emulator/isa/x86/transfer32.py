"""Control transfers in 32-bit protected mode: IRET, far RET, far JMP, far CALL, SYSENTER and SYSEXIT.

Room: `emulator/isa/x86`. By Intel SDM vol. 2 and vol. 3A 5.8; virtual-8086 mode, call gates of 16 and 32 bits and
task switches included. Operand sizes are in bytes. Every function leaves the registers unchanged when it raises
`Fault`, except behind a task switch, whose faults are the new task's.
"""

from emulator.isa.x86.descriptors import (
    ACCESSED,
    CODE,
    CONFORMING,
    FLAT_DATA,
    FLAT_LIMIT,
    KERNEL_CODE_32,
    PRESENT,
    SEGMENT,
    TYPE_CALL_GATE,
    TYPE_CALL_GATE_16,
    TYPE_TASK_GATE,
    TYPE_TSS,
    USER_CODE_32,
    USER_DATA,
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
    VIRTUAL_8086,
    Fault,
    Processor,
)
from emulator.isa.x86.segments import check_stack_segment, load_virtual_8086, mark_accessed, read_descriptor
from emulator.isa.x86.stack32 import MASK32, Stack, current, of_level
from emulator.isa.x86.tasks import Way, return_from_task, switch

_ARITHMETIC = 0x0CD5 | NESTED_TASK | 1 << 8
_WIDE = RESUME_FLAG | 1 << 18 | 1 << 21
"""RF AC ID."""
_WIDE_KERNEL = 1 << 19 | 1 << 20
"""VIF VIP."""
_VIRTUAL_ORDER = (ES, DS, FS, GS)
"""How IRET to virtual-8086 mode pops them, behind SS."""

Code = tuple[int, int, int, int]
"""Selector as it will be in CS; base, limit, attributes."""


def iret(cpu: Processor, operand_size: int) -> None:
    """IRET or IRETD (2 or 4), to the same or an outer level, to virtual-8086 mode, or to the task before."""
    rflags, level = cpu.rflags, cpu.cpl
    if rflags & VIRTUAL_8086:
        _iret_virtual(cpu, operand_size, rflags)
        return
    if rflags & NESTED_TASK:
        return_from_task(cpu)
        return
    stack = current(cpu, level == 3)
    rip, selector, flags = stack.peek(cpu, 3, operand_size)
    if operand_size == 4 and flags & VIRTUAL_8086 and level == 0:
        _to_virtual(cpu, stack, rip, selector & 0xFFFF, flags)
        return
    code = _return_code(cpu, selector & 0xFFFF, level)
    mask = _loaded_flags(operand_size, rflags >> 12 & 3, level)
    if selector & 3 == level:
        _return_within(cpu, stack, code, rip, 3 * operand_size)
    else:
        pointer, second = stack.peek(cpu, 2, operand_size, 3 * operand_size)
        _leave(cpu, code, rip, second & 0xFFFF, pointer)
    cpu.rflags = rflags & ~mask | flags & mask | 2


def _loaded_flags(size: int, iopl: int, level: int) -> int:
    mask = _ARITHMETIC | (_WIDE if size > 2 else 0)
    if level <= iopl:
        mask |= INTERRUPT_FLAG
    if level == 0:
        mask |= IO_PRIVILEGE | (_WIDE_KERNEL if size > 2 else 0)
    return mask


def _iret_virtual(cpu: Processor, size: int, rflags: int) -> None:
    """IRET within virtual-8086 mode, which takes IOPL 3."""
    if rflags & IO_PRIVILEGE != IO_PRIVILEGE:
        raise Fault(GENERAL_PROTECTION, 0)
    stack = current(cpu, True)
    rip, selector, flags = stack.peek(cpu, 3, size)
    if rip > 0xFFFF:
        raise Fault(GENERAL_PROTECTION, 0)
    load_virtual_8086(cpu, CS, selector)
    stack.pointer += 3 * size
    stack.set_pointer(cpu)
    cpu.rip = rip
    mask = _loaded_flags(size, 3, 3)
    cpu.rflags = rflags & ~mask | flags & mask | 2


def _to_virtual(cpu: Processor, stack: Stack, rip: int, selector: int, flags: int) -> None:
    """IRETD at level 0 with VM set in the flags it pops."""
    pointer, ss, *others = stack.peek(cpu, 6, 4, 12)
    cpu.set_privilege(3)
    cpu.rflags = flags & 0x3F_7FD7 | 2
    load_virtual_8086(cpu, CS, selector)
    load_virtual_8086(cpu, SS, ss)
    for index, value in zip(_VIRTUAL_ORDER, others, strict=True):
        load_virtual_8086(cpu, index, value)
    cpu.gpr[4] = pointer
    cpu.rip = rip & 0xFFFF


def far_return(cpu: Processor, operand_size: int, pop_bytes: int = 0) -> None:
    """Far RET of operand size 2 or 4 that releases `pop_bytes` more, to the same or an outer level."""
    level = cpu.cpl
    stack = current(cpu, level == 3)
    rip, selector = stack.peek(cpu, 2, operand_size)
    selector &= 0xFFFF
    released = 2 * operand_size + pop_bytes
    if cpu.rflags & VIRTUAL_8086:
        load_virtual_8086(cpu, CS, selector)
        stack.pointer += released
        stack.set_pointer(cpu)
        cpu.rip = rip & 0xFFFF
        return
    code = _return_code(cpu, selector, level)
    if selector & 3 == level:
        _return_within(cpu, stack, code, rip, released)
        return
    pointer, second = stack.peek(cpu, 2, operand_size, released)
    _leave(cpu, code, rip, second & 0xFFFF, pointer + pop_bytes)


def _return_code(cpu: Processor, selector: int, level: int) -> Code:
    """The code segment that IRET or far RET at `level` may return to."""
    error = selector & 0xFFFC
    if not error:
        raise Fault(GENERAL_PROTECTION, 0)
    base, limit, attributes = segment_parts(read_descriptor(cpu, selector))
    rpl, dpl = selector & 3, attributes >> 13 & 3
    if (
        attributes & (SEGMENT | CODE) != SEGMENT | CODE
        or rpl < level
        or (dpl > rpl if attributes & CONFORMING else dpl != rpl)
    ):
        raise Fault(GENERAL_PROTECTION, error)
    if not attributes & PRESENT:
        raise Fault(SEGMENT_NOT_PRESENT, error)
    return selector, base, limit, attributes


def _load_code(cpu: Processor, code: Code) -> None:
    selector, base, limit, attributes = code
    if not attributes & ACCESSED:
        attributes = mark_accessed(cpu, selector, attributes)
    cpu.set_segment(CS, selector, base, limit, attributes)


def _checked(code: Code, rip: int) -> int:
    """The new EIP. Raises #GP(0) outside the segment."""
    if rip > code[2]:
        raise Fault(GENERAL_PROTECTION, 0)
    return rip


def _return_within(cpu: Processor, stack: Stack, code: Code, rip: int, released: int) -> None:
    rip = _checked(code, rip)
    _load_code(cpu, code)
    stack.pointer += released
    stack.set_pointer(cpu)
    cpu.rip = rip


def _leave(cpu: Processor, code: Code, rip: int, stack_selector: int, pointer: int) -> None:
    """Return to another stack at the outer level that the code selector asks for."""
    level = code[0] & 3
    if not stack_selector & 0xFFFC:
        raise Fault(GENERAL_PROTECTION, 0)
    base, limit, attributes = segment_parts(read_descriptor(cpu, stack_selector))
    check_stack_segment(stack_selector, attributes, level)
    rip = _checked(code, rip)
    if not attributes & ACCESSED:
        attributes = mark_accessed(cpu, stack_selector, attributes)
    _load_code(cpu, code)
    Stack(stack_selector, base, limit, attributes, pointer & MASK32, True, 0).load(cpu)
    cpu.rip = rip
    cpu.set_privilege(level)
    for index in (ES, DS, FS, GS):
        selector, _, _, held = cpu.segment(index)
        if selector & 0xFFFC and held & (CODE | CONFORMING) != CODE | CONFORMING and held >> 13 & 3 < level:
            cpu.set_segment(index, 0, 0, 0, 0)


def far_jump(cpu: Processor, selector: int, offset: int, length: int = 0) -> None:
    """Far JMP: directly, by a call gate, or to another task; the task left resumes at EIP + `length`."""
    if cpu.rflags & VIRTUAL_8086:
        load_virtual_8086(cpu, CS, selector)
        cpu.rip = offset & 0xFFFF
        return
    level = cpu.cpl
    found = _destination(cpu, selector, offset, level, call=False)
    if found is None:
        switch(cpu, _task_of(cpu, selector), Way.JUMP, cpu.rip + length & MASK32)
        return
    code, offset, _, _ = found
    rip = _checked(code, offset)
    _load_code(cpu, (code[0] & 0xFFFC | level, *code[1:]))
    cpu.rip = rip


def far_call(cpu: Processor, selector: int, offset: int, operand_size: int, length: int = 0) -> None:
    """Far CALL of operand size 2 or 4: directly, by a call gate to the same or an inner level, or to another task.

    The return address pushed is EIP + `length`.
    """
    level = cpu.cpl
    back = cpu.rip + length & MASK32
    stack = current(cpu, level == 3)
    if cpu.rflags & VIRTUAL_8086:
        stack.push(cpu, (cpu.segment(CS)[0], back), operand_size)
        load_virtual_8086(cpu, CS, selector)
        stack.set_pointer(cpu)
        cpu.rip = offset & 0xFFFF
        return
    found = _destination(cpu, selector, offset, level, call=True)
    if found is None:
        switch(cpu, _task_of(cpu, selector), Way.CALL, back)
        return
    code, offset, gate_size, parameters = found
    size = gate_size or operand_size
    attributes = code[3]
    new_level = level if attributes & CONFORMING else attributes >> 13 & 3
    rip = _checked(code, offset)
    words = [cpu.segment(CS)[0], back]
    if new_level != level:
        copied = stack.peek(cpu, parameters, size)
        words = [cpu.segment(SS)[0], cpu.gpr[4] & MASK32, *reversed(copied), *words]
        stack = of_level(cpu, new_level)
    stack.push(cpu, words, size)
    _load_code(cpu, (code[0] & 0xFFFC | new_level, *code[1:]))
    if new_level == level:
        stack.set_pointer(cpu)
    else:
        stack.load(cpu)
        cpu.set_privilege(new_level)
    cpu.rip = rip


def _destination(
    cpu: Processor, selector: int, offset: int, level: int, *, call: bool
) -> tuple[Code, int, int, int] | None:
    """Code segment, offset, operand size of the gate (0 without one) and its parameters; None for another task."""
    error = selector & 0xFFFC
    if not error:
        raise Fault(GENERAL_PROTECTION, 0)
    low = read_descriptor(cpu, selector)
    base, limit, attributes = segment_parts(low)
    dpl, kind = attributes >> 13 & 3, attributes >> 8 & 0xF
    if attributes & SEGMENT:
        code = selector, base, limit, attributes
        if not attributes & CODE or (dpl > level if attributes & CONFORMING else dpl != level or selector & 3 > level):
            raise Fault(GENERAL_PROTECTION, error)
        if not attributes & PRESENT:
            raise Fault(SEGMENT_NOT_PRESENT, error)
        return code, offset, 0, 0
    if kind not in (TYPE_CALL_GATE, TYPE_CALL_GATE_16, TYPE_TASK_GATE, TYPE_TSS) or dpl < level or dpl < selector & 3:
        raise Fault(GENERAL_PROTECTION, error)
    if kind in (TYPE_TASK_GATE, TYPE_TSS):
        if not attributes & PRESENT:
            raise Fault(SEGMENT_NOT_PRESENT, error)
        return None
    if not attributes & PRESENT:
        raise Fault(SEGMENT_NOT_PRESENT, error)
    target, offset, parameters, _ = legacy_gate_parts(low)
    if not target & 0xFFFC:
        raise Fault(GENERAL_PROTECTION, 0)
    base, limit, attributes = segment_parts(read_descriptor(cpu, target))
    dpl = attributes >> 13 & 3
    inner = call or attributes & CONFORMING
    if attributes & (SEGMENT | CODE) != SEGMENT | CODE or (dpl > level if inner else dpl != level):
        raise Fault(GENERAL_PROTECTION, target & 0xFFFC)
    if not attributes & PRESENT:
        raise Fault(SEGMENT_NOT_PRESENT, target & 0xFFFC)
    size = 4 if kind == TYPE_CALL_GATE else 2
    return (target, base, limit, attributes), offset, size, parameters


def _task_of(cpu: Processor, selector: int) -> int:
    """The selector of the TSS that a selector of a task gate or of a TSS leads to."""
    low = read_descriptor(cpu, selector)
    return low >> 16 & 0xFFFF if low >> 40 & 0xF == TYPE_TASK_GATE else selector


def sysenter(cpu: Processor, code: int, pointer: int, target: int) -> None:
    """SYSENTER by the values of IA32_SYSENTER_CS, _ESP and _EIP. #GP(0) where the first is null."""
    if not code & 0xFFFC:
        raise Fault(GENERAL_PROTECTION, 0)
    level = cpu.cpl
    cpu.rflags = cpu.rflags & ~(VIRTUAL_8086 | INTERRUPT_FLAG | RESUME_FLAG)
    cpu.set_segment(CS, code & 0xFFFC, 0, FLAT_LIMIT, KERNEL_CODE_32)
    cpu.set_segment(SS, (code & 0xFFFC) + 8 & 0xFFFF, 0, FLAT_LIMIT, FLAT_DATA)
    cpu.gpr[4] = pointer & MASK32
    cpu.rip = target & MASK32
    if level:
        cpu.set_privilege(0)


def sysexit(cpu: Processor, code: int) -> None:
    """SYSEXIT by the value of IA32_SYSENTER_CS: to EDX on stack ECX. #GP(0) where it is null, or above level 0."""
    if not code & 0xFFFC or cpu.cpl:
        raise Fault(GENERAL_PROTECTION, 0)
    gpr = cpu.gpr
    cpu.rip, stack = gpr[2] & MASK32, gpr[1] & MASK32
    gpr[4] = stack
    cpu.set_segment(CS, code + 16 & 0xFFFC | 3, 0, FLAT_LIMIT, USER_CODE_32)
    cpu.set_segment(SS, code + 24 & 0xFFFC | 3, 0, FLAT_LIMIT, USER_DATA)
    cpu.set_privilege(3)
