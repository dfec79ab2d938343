"""Control transfers between segments and privilege levels: long mode's, and by EFER.LMA those of `transfer32`.

Room: `emulator/isa/x86`. IRET, far RET, far JMP, far CALL (call gates included), SYSCALL and SYSRET on any
`Processor`, by Intel SDM vol. 2. Operand sizes are in bytes. Every function leaves the registers
unchanged when it raises `Fault`. Where Intel and AMD differ, Intel's behaviour is chosen: SYSCALL is
#UD in compatibility mode, SYSRET checks RCX at CPL 0 and loads all of SS.
"""

from emulator.isa.x86 import transfer32
from emulator.isa.x86.delivery import task_stack
from emulator.isa.x86.descriptors import (
    ACCESSED,
    CODE,
    CONFORMING,
    DEFAULT_BIG,
    EXPAND_DOWN,
    FLAT_DATA,
    FLAT_LIMIT,
    KERNEL_CODE,
    LONG,
    PRESENT,
    SEGMENT,
    TYPE_CALL_GATE,
    USER_CODE,
    USER_CODE_32,
    USER_DATA,
    gate_parts,
    segment_parts,
)
from emulator.isa.x86.processor import (
    CS,
    EFER_SYSTEM_CALL,
    GENERAL_PROTECTION,
    INTERRUPT_FLAG,
    INVALID_OPCODE,
    IO_PRIVILEGE,
    LONG_MODE,
    MASK64,
    NESTED_TASK,
    RESUME_FLAG,
    SEGMENT_NOT_PRESENT,
    SS,
    STACK_FAULT,
    Fault,
    Processor,
)
from emulator.isa.x86.segments import (
    canonical,
    check_stack_segment,
    descriptor_address,
    mark_accessed,
    read_descriptor,
)

_ARITHMETIC = 0x0CD5 | NESTED_TASK | 1 << 8
"""CF PF AF ZF SF TF DF OF NT: what IRET loads at any level and operand size."""
_WIDE = RESUME_FLAG | 1 << 18 | 1 << 21
"""RF AC ID: loaded by 32- and 64-bit IRET."""
_WIDE_KERNEL = 1 << 19 | 1 << 20
"""VIF VIP: loaded by 32- and 64-bit IRET at CPL 0."""
_SYSRET_FLAGS = 0x3C_7FD7
_HOLE = 0x8000_0000_0000
_BAD_BOTH = LONG | DEFAULT_BIG


def _iret_masks() -> tuple[int, ...]:
    """The flags an IRET may change, at index `wide << 4 | iopl << 2 | cpl`."""
    masks = []
    for wide in (False, True):
        for iopl in range(4):
            for cpl in range(4):
                mask = _ARITHMETIC | (_WIDE if wide else 0)
                mask |= INTERRUPT_FLAG if cpl <= iopl else 0
                mask |= IO_PRIVILEGE | (_WIDE_KERNEL if wide else 0) if cpl == 0 else 0
                masks.append(mask)
    return tuple(masks)


_IRET_MASKS = _iret_masks()


def iret(cpu: Processor, operand_size: int) -> None:
    """IRET, IRETD or IRETQ (2, 4, 8), from 64-bit or compatibility mode, to the same or an outer level."""
    if not cpu.efer & LONG_MODE:
        transfer32.iret(cpu, operand_size)
        return
    rflags = cpu.rflags
    if rflags & NESTED_TASK:
        raise Fault(GENERAL_PROTECTION, 0)
    level = cpu.cpl
    in_long = cpu.segment(CS)[3] & LONG
    # 64-bit mode always pops SS:RSP, compatibility mode only on the way to an outer level.
    words = _peek(cpu, 5 if in_long else 3, operand_size)
    selector = words[1] & 0xFFFF
    code = _return_code(cpu, selector, level)
    if not in_long and selector & 3 != level:
        words += _peek(cpu, 2, operand_size, 3 * operand_size)
    mask = _IRET_MASKS[(16 if operand_size > 2 else 0) | rflags >> 10 & 12 | level]
    if len(words) == 5:
        _leave(cpu, level, selector, code, words[0], words[4] & 0xFFFF, words[3])
    else:
        _return_within(cpu, selector, code, words[0], 3 * operand_size)
    cpu.rflags = rflags & ~mask | words[2] & mask | 2


def far_return(cpu: Processor, operand_size: int, pop_bytes: int = 0) -> None:
    """Far RET of operand size 2, 4 or 8 that releases `pop_bytes` more, to the same or an outer level."""
    if not cpu.efer & LONG_MODE:
        transfer32.far_return(cpu, operand_size, pop_bytes)
        return
    level = cpu.cpl
    rip, second = _peek(cpu, 2, operand_size)
    selector = second & 0xFFFF
    code = _return_code(cpu, selector, level)
    released = 2 * operand_size + pop_bytes
    if selector & 3 == level:
        _return_within(cpu, selector, code, rip, released)
        return
    rsp, stack = _peek(cpu, 2, operand_size, released)
    _leave(cpu, level, selector, code, rip, stack & 0xFFFF, rsp + pop_bytes)


def _stack_mask(in_long: int, stack_attributes: int) -> int:
    """Which bits of RSP address the stack."""
    if in_long:
        return MASK64
    return 0xFFFF_FFFF if stack_attributes & DEFAULT_BIG else 0xFFFF


def _peek(cpu: Processor, count: int, size: int, skip: int = 0) -> list[int]:
    """`count` words of `size` bytes from `skip` bytes above the top of the stack, checked as pops are."""
    read = cpu.read if cpu.cpl < 3 else cpu.read_user
    rsp = cpu.gpr[4] + skip
    if cpu.segment(CS)[3] & LONG:
        if rsp + _HOLE >> 48 & 0xFFFF or rsp + count * size - 1 + _HOLE >> 48 & 0xFFFF:
            raise Fault(STACK_FAULT, 0)
        return [read(rsp + step & MASK64, size) for step in range(0, count * size, size)]
    return [read(_stack_address(cpu, rsp + step, size), size) for step in range(0, count * size, size)]


def _stack_address(cpu: Processor, pointer: int, size: int) -> int:
    """Linear address of a stack word in compatibility mode. Raises #SS(0) outside the segment."""
    selector, base, limit, attributes = cpu.segment(SS)
    mask = _stack_mask(0, attributes)
    pointer &= mask
    last = pointer + size - 1
    outside = (pointer <= limit or last > mask) if attributes & EXPAND_DOWN else last > limit
    if outside or not selector & 0xFFFC:
        raise Fault(STACK_FAULT, 0)
    return base + pointer & 0xFFFF_FFFF


def _set_stack_pointer(cpu: Processor, value: int, mask: int) -> None:
    """A 16-bit stack keeps the upper bits of RSP; a 32-bit one clears them."""
    keep = cpu.gpr[4] & ~0xFFFF if mask == 0xFFFF else 0
    cpu.gpr[4] = keep | value & mask


def _return_code(cpu: Processor, selector: int, level: int) -> tuple[int, int, int]:
    """Base, limit, attributes of the code segment that IRET or far RET at `level` may return to."""
    error = selector & 0xFFFC
    if not error:
        raise Fault(GENERAL_PROTECTION, 0)
    parts = segment_parts(read_descriptor(cpu, selector))
    attributes = parts[2]
    rpl = selector & 3
    dpl = attributes >> 13 & 3
    if (
        attributes & (SEGMENT | CODE) != SEGMENT | CODE
        or rpl < level
        or (dpl > rpl if attributes & CONFORMING else dpl != rpl)
        or attributes & _BAD_BOTH == _BAD_BOTH
    ):
        raise Fault(GENERAL_PROTECTION, error)
    if not attributes & PRESENT:
        raise Fault(SEGMENT_NOT_PRESENT, error)
    return parts


def _target(code: tuple[int, int, int], rip: int) -> int:
    """The new RIP, checked: canonical in a 64-bit segment, within the limit in a compatibility one."""
    if code[2] & LONG:
        if rip + _HOLE >> 48 & 0xFFFF:
            raise Fault(GENERAL_PROTECTION, 0)
        return rip
    rip &= 0xFFFF_FFFF
    if rip > code[1]:
        raise Fault(GENERAL_PROTECTION, 0)
    return rip


def _load_code(cpu: Processor, selector: int, code: tuple[int, int, int]) -> None:
    """Load CS; the accessed bit is set in the table before anything changes."""
    base, limit, attributes = code
    if not attributes & ACCESSED:
        attributes = mark_accessed(cpu, selector, attributes)
    cpu.set_segment(CS, selector, base, limit, attributes)


def _return_within(cpu: Processor, selector: int, code: tuple[int, int, int], rip: int, released: int) -> None:
    """Return to the same level on the same stack, `released` bytes further up."""
    rip = _target(code, rip)
    mask = _stack_mask(cpu.segment(CS)[3] & LONG, cpu.segment(SS)[3])
    _load_code(cpu, selector, code)
    _set_stack_pointer(cpu, cpu.gpr[4] + released, mask)
    cpu.rip = rip


def _leave(
    cpu: Processor, level: int, selector: int, code: tuple[int, int, int], rip: int, stack_selector: int, rsp: int
) -> None:
    """Return to another stack, and to the level that `selector` asks for."""
    new_level = selector & 3
    to_long = code[2] & LONG
    if stack_selector & 0xFFFC:
        base, limit, attributes = segment_parts(read_descriptor(cpu, stack_selector))
        check_stack_segment(stack_selector, attributes, new_level)
        rip = _target(code, rip)
        if not attributes & ACCESSED:
            attributes = mark_accessed(cpu, stack_selector, attributes)
    else:
        # A null stack needs 64-bit mode below CPL 3, and the RPL of the level.
        if not to_long or new_level == 3 or stack_selector != new_level:
            raise Fault(GENERAL_PROTECTION, 0)
        base, limit, attributes = 0, FLAT_LIMIT, FLAT_DATA | new_level << 13
        rip = _target(code, rip)
    _load_code(cpu, selector, code)
    cpu.set_segment(SS, stack_selector, base, limit, attributes)
    if to_long:
        cpu.gpr[4] = rsp & MASK64
    else:
        _set_stack_pointer(cpu, rsp, _stack_mask(0, attributes))
    cpu.rip = rip
    if new_level != level:
        cpu.set_privilege(new_level)
        _drop_data_segments(cpu, new_level)


def _drop_data_segments(cpu: Processor, level: int) -> None:
    """Null the data segment registers that the outer `level` may not use.

    A register that holds a null selector 1..3 becomes 0 too. FS and GS keep their bases, which in
    64-bit mode are not the descriptor's.
    """
    for index in (0, 3, 4, 5):
        selector, base, limit, attributes = cpu.segment(index)
        if not selector:
            continue
        if not selector & 0xFFFC:
            cpu.set_segment(index, 0, base, limit, attributes)
        elif attributes & (CODE | CONFORMING) != CODE | CONFORMING and attributes >> 13 & 3 < level:
            cpu.set_segment(index, 0, base if index > 3 else 0, 0, 0)


def far_jump(cpu: Processor, selector: int, offset: int, length: int = 0) -> None:
    """Far JMP, directly or by a call gate; task gates and TSSs are #GP in long mode.

    A task that 32-bit code leaves resumes at EIP + `length`.
    """
    if not cpu.efer & LONG_MODE:
        transfer32.far_jump(cpu, selector, offset, length)
        return
    level = cpu.cpl
    selector, code, offset, _ = _destination(cpu, selector, offset, level, call=False)
    rip = _target(code, offset)
    _load_code(cpu, selector & 0xFFFC | level, code)
    cpu.rip = rip


def far_call(cpu: Processor, selector: int, offset: int, operand_size: int, length: int = 0) -> None:
    """Far CALL of operand size 2, 4 or 8, directly or by a call gate, to the same or an inner level.

    The return address pushed is RIP + `length`.
    """
    if not cpu.efer & LONG_MODE:
        transfer32.far_call(cpu, selector, offset, operand_size, length)
        return
    level = cpu.cpl
    selector, code, offset, by_gate = _destination(cpu, selector, offset, level, call=True)
    rip = _target(code, offset)
    back = cpu.rip + length & MASK64
    attributes = code[2]
    new_level = level if attributes & CONFORMING else attributes >> 13 & 3
    old_code = cpu.segment(CS)[0]
    if new_level == level:
        rsp, mask = _push(cpu, (old_code, back), 8 if by_gate else operand_size)
        _load_code(cpu, selector & 0xFFFC | level, code)
        _set_stack_pointer(cpu, rsp, mask)
        cpu.rip = rip
        return
    rsp = task_stack(cpu, new_level)
    if rsp - 32 + _HOLE >> 48 & 0xFFFF or rsp - 1 + _HOLE >> 48 & 0xFFFF:
        raise Fault(STACK_FAULT, 0)
    for word in (cpu.segment(SS)[0], cpu.gpr[4], old_code, back):
        rsp = rsp - 8 & MASK64
        cpu.write(rsp, 8, word)
    _load_code(cpu, selector & 0xFFFC | new_level, code)
    cpu.set_segment(SS, new_level, 0, FLAT_LIMIT, FLAT_DATA | new_level << 13)
    cpu.gpr[4] = rsp
    cpu.rip = rip
    cpu.set_privilege(new_level)


def _push(cpu: Processor, words: tuple[int, ...], size: int) -> tuple[int, int]:
    """Write `words` below the top of the current stack; returns the new top and the stack's mask."""
    write = cpu.write if cpu.cpl < 3 else cpu.write_user
    in_long = cpu.segment(CS)[3] & LONG
    rsp = cpu.gpr[4]
    addresses = []
    for _ in words:
        rsp -= size
        if not in_long:
            addresses.append(_stack_address(cpu, rsp, size))
        elif canonical(rsp & MASK64) and canonical(rsp + size - 1 & MASK64):
            addresses.append(rsp & MASK64)
        else:
            raise Fault(STACK_FAULT, 0)
    for address, word in zip(addresses, words, strict=True):
        write(address, size, word & (1 << 8 * size) - 1)
    return rsp, _stack_mask(in_long, cpu.segment(SS)[3])


def _destination(
    cpu: Processor, selector: int, offset: int, level: int, *, call: bool
) -> tuple[int, tuple[int, int, int], int, bool]:
    """Selector, code segment, offset that a far JMP or CALL leads to, and whether by a call gate."""
    error = selector & 0xFFFC
    if not error:
        raise Fault(GENERAL_PROTECTION, 0)
    low = read_descriptor(cpu, selector)
    code = segment_parts(low)
    attributes = code[2]
    dpl = attributes >> 13 & 3
    if not attributes & SEGMENT:
        if attributes >> 8 & 0xF != TYPE_CALL_GATE or dpl < level or dpl < selector & 3:
            raise Fault(GENERAL_PROTECTION, error)
        return _through_gate(cpu, selector, low, level, call)
    if not attributes & CODE or attributes & _BAD_BOTH == _BAD_BOTH:
        raise Fault(GENERAL_PROTECTION, error)
    if dpl > level if attributes & CONFORMING else dpl != level or selector & 3 > level:
        raise Fault(GENERAL_PROTECTION, error)
    if not attributes & PRESENT:
        raise Fault(SEGMENT_NOT_PRESENT, error)
    return selector, code, offset, False


def _through_gate(
    cpu: Processor, gate_selector: int, low: int, level: int, call: bool
) -> tuple[int, tuple[int, int, int], int, bool]:
    """The target of a 64-bit call gate whose privilege was checked."""
    if not low >> 47 & 1:
        raise Fault(SEGMENT_NOT_PRESENT, gate_selector & 0xFFFC)
    address = descriptor_address(cpu, gate_selector, 16)
    if address is None:
        raise Fault(GENERAL_PROTECTION, gate_selector & 0xFFFC)
    high = cpu.read(address + 8 & MASK64, 8)
    if high >> 40 & 0x1F:  # the upper half must not pass for a descriptor of its own
        raise Fault(GENERAL_PROTECTION, gate_selector & 0xFFFC)
    selector, offset, _, _ = gate_parts(low, high)
    error = selector & 0xFFFC
    if not error:
        raise Fault(GENERAL_PROTECTION, 0)
    code = segment_parts(read_descriptor(cpu, selector))
    attributes = code[2]
    dpl = attributes >> 13 & 3
    inner = call or attributes & CONFORMING
    if (
        attributes & (SEGMENT | CODE) != SEGMENT | CODE
        or (dpl > level if inner else dpl != level)
        or attributes & _BAD_BOTH != LONG
    ):
        raise Fault(GENERAL_PROTECTION, error)
    if not attributes & PRESENT:
        raise Fault(SEGMENT_NOT_PRESENT, error)
    return selector, code, offset, True


def syscall(cpu: Processor, length: int) -> None:
    """SYSCALL of `length` bytes at RIP. #UD when EFER.SCE is clear or outside 64-bit mode (Intel)."""
    if not cpu.efer & EFER_SYSTEM_CALL or not cpu.segment(CS)[3] & LONG:
        raise Fault(INVALID_OPCODE)
    level = cpu.cpl
    rflags = cpu.rflags
    gpr = cpu.gpr
    gpr[1] = cpu.rip + length & MASK64
    # RF ends with the instruction: what R11 receives has it clear (AMD APM vol. 3; the SDM is silent).
    gpr[11] = rflags & ~RESUME_FLAG & MASK64
    cpu.rip = cpu.lstar & MASK64
    cpu.rflags = rflags & ~(cpu.fmask | RESUME_FLAG) & MASK64 | 2
    selector = cpu.star >> 32 & 0xFFFC
    cpu.set_segment(CS, selector, 0, FLAT_LIMIT, KERNEL_CODE)
    cpu.set_segment(SS, selector + 8 & 0xFFFF, 0, FLAT_LIMIT, FLAT_DATA)
    if level:
        cpu.set_privilege(0)


def sysret(cpu: Processor, operand_size: int) -> None:
    """SYSRET to 64-bit mode (operand size 8) or compatibility mode (4), as Intel has it."""
    if not cpu.efer & EFER_SYSTEM_CALL or not cpu.segment(CS)[3] & LONG:
        raise Fault(INVALID_OPCODE)
    if cpu.cpl:
        raise Fault(GENERAL_PROTECTION, 0)
    gpr = cpu.gpr
    rip = gpr[1]
    base = cpu.star >> 48 & 0xFFFF
    if operand_size == 8:
        if rip + _HOLE >> 48 & 0xFFFF:
            raise Fault(GENERAL_PROTECTION, 0)
        selector, attributes = base + 16 & 0xFFFF, USER_CODE
    else:
        rip &= 0xFFFF_FFFF
        selector, attributes = base, USER_CODE_32
    cpu.rip = rip
    cpu.rflags = gpr[11] & _SYSRET_FLAGS | 2
    cpu.set_segment(CS, selector | 3, 0, FLAT_LIMIT, attributes)
    cpu.set_segment(SS, base + 8 & 0xFFFF | 3, 0, FLAT_LIMIT, USER_DATA)
    cpu.set_privilege(3)
