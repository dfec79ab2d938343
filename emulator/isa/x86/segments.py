"""Segment-register loads and descriptor inspection, in long mode and in 32-bit protected mode.

Room: `emulator/isa/x86`. MOV and POP to a segment register, LLDT, LTR, LAR, LSL, VERR and VERW on any
`Processor`, with every check of Intel SDM vol. 2 (MOV, LLDT, LTR, LAR, LSL, VERR) and vol. 3A 5.
Where Intel and AMD differ (a null FS or GS clears its base) Intel's behaviour is chosen.
"""

from emulator.isa.x86.descriptors import (
    ACCESSED,
    ATTRIBUTES,
    BUSY,
    CODE,
    CONFORMING,
    FLAT_DATA,
    FLAT_LIMIT,
    LONG,
    PRESENT,
    READABLE,
    SEGMENT,
    TYPE_CALL_GATE,
    TYPE_CALL_GATE_16,
    TYPE_LDT,
    TYPE_TASK_GATE,
    TYPE_TSS,
    TYPE_TSS_16,
    TYPE_TSS_16_BUSY,
    TYPE_TSS_BUSY,
    VIRTUAL_8086_LIMIT,
    WRITABLE,
    segment_parts,
    system_parts,
)
from emulator.isa.x86.descriptors import VIRTUAL_8086 as VIRTUAL_8086_SEGMENT
from emulator.isa.x86.processor import (
    CS,
    GENERAL_PROTECTION,
    GS,
    INVALID_OPCODE,
    LDTR,
    LONG_MODE,
    MASK64,
    SEGMENT_NOT_PRESENT,
    SS,
    STACK_FAULT,
    TR,
    VIRTUAL_8086,
    Fault,
    Processor,
)

_LSL_TYPES = frozenset({TYPE_LDT, TYPE_TSS, TYPE_TSS_BUSY})
_LAR_TYPES = _LSL_TYPES | {TYPE_CALL_GATE}
_LSL_TYPES_32 = _LSL_TYPES | {TYPE_TSS_16, TYPE_TSS_16_BUSY}
_LAR_TYPES_32 = _LAR_TYPES | {TYPE_TSS_16, TYPE_TSS_16_BUSY, TYPE_CALL_GATE_16, TYPE_TASK_GATE}


def canonical(address: int) -> bool:
    """Whether bits 63-47 of a 64-bit address are equal (four-level paging)."""
    return not address + 0x8000_0000_0000 >> 48 & 0xFFFF


def descriptor_address(cpu: Processor, selector: int, size: int = 8) -> int | None:
    """Linear address of the descriptor that a selector names; None when its table does not hold it."""
    if selector & 4:
        ldt, base, limit, _ = cpu.segment(LDTR)
        if not ldt & 0xFFFC:
            return None
    else:
        base = cpu.gdt_base
        limit = cpu.gdt_limit
    index = selector & 0xFFF8
    if index + size - 1 > limit:
        return None
    address = base + index & MASK64
    # The whole descriptor must be canonical; at the edge of the hole only its end tells.
    if address + 0x8000_0000_0000 >> 48 & 0xFFFF or address + size - 1 + 0x8000_0000_0000 >> 48 & 0xFFFF:
        return None
    return address


def read_descriptor(cpu: Processor, selector: int, vector: int = GENERAL_PROTECTION, external: int = 0) -> int:
    """The 8-byte descriptor that a non-null selector names.

    Raises `Fault(vector, selector index | external)` when the table does not hold it.
    """
    address = descriptor_address(cpu, selector)
    if address is None:
        raise Fault(vector, selector & 0xFFFC | external)
    return cpu.read(address, 8)


def mark_accessed(cpu: Processor, selector: int, attributes: int) -> int:
    """Set the accessed bit of the descriptor in its table; returns `attributes` with the bit set."""
    address = descriptor_address(cpu, selector)
    if address is not None:
        cpu.write(address + 5 & MASK64, 1, attributes >> 8 & 0xFF | 1)
    return attributes | ACCESSED


def load_segment(cpu: Processor, index: int, selector: int) -> None:
    """MOV or POP to ES, SS, DS, FS or GS: all checks, then the register with its hidden part.

    CS (`index` 1) is #UD. The interrupt shadow of a load of SS is the caller's.
    """
    if index == CS or not 0 <= index <= GS:
        raise Fault(INVALID_OPCODE)
    if not cpu.efer & LONG_MODE and cpu.rflags & VIRTUAL_8086:
        load_virtual_8086(cpu, index, selector)
        return
    if not selector & 0xFFFC:
        _load_null(cpu, index, selector)
        return
    base, limit, attributes = segment_parts(read_descriptor(cpu, selector))
    if index == SS:
        check_stack_segment(selector, attributes, cpu.cpl)
    else:
        if not attributes & SEGMENT or attributes & (CODE | READABLE) == CODE:
            raise Fault(GENERAL_PROTECTION, selector & 0xFFFC)
        if not _reachable(selector, attributes, cpu.cpl):
            raise Fault(GENERAL_PROTECTION, selector & 0xFFFC)
        if not attributes & PRESENT:
            raise Fault(SEGMENT_NOT_PRESENT, selector & 0xFFFC)
    if not attributes & ACCESSED:
        attributes = mark_accessed(cpu, selector, attributes)
    cpu.set_segment(index, selector, base, limit, attributes)


def load_virtual_8086(cpu: Processor, index: int, selector: int) -> None:
    """Load a segment register as in virtual-8086 mode: no table is looked at."""
    selector &= 0xFFFF
    cpu.set_segment(index, selector, selector << 4, VIRTUAL_8086_LIMIT, VIRTUAL_8086_SEGMENT)


def check_stack_segment(selector: int, attributes: int, cpl: int) -> None:
    """Raise the fault that a non-null SS selector meets when it is loaded to run at `cpl`."""
    if (
        selector & 3 != cpl
        or attributes & (SEGMENT | CODE | WRITABLE) != SEGMENT | WRITABLE
        or attributes >> 13 & 3 != cpl
    ):
        raise Fault(GENERAL_PROTECTION, selector & 0xFFFC)
    if not attributes & PRESENT:
        raise Fault(STACK_FAULT, selector & 0xFFFC)


def _load_null(cpu: Processor, index: int, selector: int) -> None:
    if index != SS:
        cpu.set_segment(index, selector, 0, 0, 0)
        return
    cpl = cpu.cpl
    # Null stacks are a thing of 64-bit mode below CPL 3; the hidden part keeps the level as its DPL.
    if cpl == 3 or selector & 3 != cpl or not cpu.segment(CS)[3] & LONG:
        raise Fault(GENERAL_PROTECTION, 0)
    cpu.set_segment(SS, selector, 0, FLAT_LIMIT, FLAT_DATA | cpl << 13)


def _reachable(selector: int, attributes: int, cpl: int) -> bool:
    """Whether CPL and RPL may use the segment: always a conforming one, else DPL decides."""
    if attributes & (SEGMENT | CODE | CONFORMING) == SEGMENT | CODE | CONFORMING:
        return True
    dpl = attributes >> 13 & 3
    return cpl <= dpl and selector & 3 <= dpl


def load_ldt(cpu: Processor, selector: int) -> None:
    """LLDT: load LDTR. Raises #GP(0) above CPL 0."""
    if cpu.cpl:
        raise Fault(GENERAL_PROTECTION, 0)
    if not selector & 0xFFFC:
        cpu.set_segment(LDTR, selector, 0, 0, 0)
        return
    base, limit, attributes = _system_segment(cpu, selector, TYPE_LDT)
    cpu.set_segment(LDTR, selector, base, limit, attributes)


def load_task_register(cpu: Processor, selector: int) -> None:
    """LTR: load TR and mark the TSS busy in the GDT. Raises #GP(0) above CPL 0."""
    if cpu.cpl or not selector & 0xFFFC:
        raise Fault(GENERAL_PROTECTION, 0)
    base, limit, attributes = _system_segment(cpu, selector, TYPE_TSS, TYPE_TSS_16)
    attributes |= BUSY
    address = cpu.gdt_base + (selector & 0xFFF8) + 5 & MASK64
    cpu.write(address, 1, attributes >> 8 & 0xFF)
    cpu.set_segment(TR, selector, base, limit, attributes)


def _system_segment(cpu: Processor, selector: int, kind: int, narrow: int = -1) -> tuple[int, int, int]:
    """Base, limit, attributes of an LDT or available TSS; `narrow` is the type that only protected mode allows besides.

    In long mode its descriptor has 16 bytes, else 8.
    """
    error = selector & 0xFFFC
    wide = cpu.efer & LONG_MODE
    address = None if selector & 4 else descriptor_address(cpu, selector, 16 if wide else 8)
    if address is None:
        raise Fault(GENERAL_PROTECTION, error)
    low = cpu.read(address, 8)
    high = cpu.read(address + 8 & MASK64, 8) if wide else 0
    base, limit, attributes = system_parts(low, high)
    found = attributes >> 8 & (0xF | SEGMENT >> 8)
    # Bits 8-12 of the last word must be zero, so that it can never pass for a descriptor of its own.
    if (found != kind and (wide or found != narrow)) or high >> 40 & 0x1F:
        raise Fault(GENERAL_PROTECTION, error)
    if not attributes & PRESENT:
        raise Fault(SEGMENT_NOT_PRESENT, error)
    if not canonical(base):
        raise Fault(GENERAL_PROTECTION, error)
    return base, limit, attributes


def lar(cpu: Processor, selector: int) -> int | None:
    """LAR: the access rights (second word & 0xF0FF00), or None when ZF is to be cleared."""
    parts = _visible(cpu, selector, _LAR_TYPES if cpu.efer & LONG_MODE else _LAR_TYPES_32)
    return None if parts is None else parts[2] & ATTRIBUTES


def lsl(cpu: Processor, selector: int) -> int | None:
    """LSL: the limit in bytes, or None when ZF is to be cleared."""
    parts = _visible(cpu, selector, _LSL_TYPES if cpu.efer & LONG_MODE else _LSL_TYPES_32)
    return None if parts is None else parts[1]


def verr(cpu: Processor, selector: int) -> bool:
    """VERR: whether the segment is readable from the current level (the new ZF)."""
    parts = _visible(cpu, selector, frozenset())
    return parts is not None and parts[2] & (CODE | READABLE) != CODE


def verw(cpu: Processor, selector: int) -> bool:
    """VERW: whether the segment is writable from the current level (the new ZF)."""
    parts = _visible(cpu, selector, frozenset())
    return parts is not None and parts[2] & (CODE | WRITABLE) == WRITABLE


def _visible(cpu: Processor, selector: int, system_types: frozenset[int]) -> tuple[int, int, int] | None:
    """Base, limit, attributes of a segment that the current level may inspect, else None."""
    if not selector & 0xFFFC:
        return None
    address = descriptor_address(cpu, selector)
    if address is None:
        return None
    parts = segment_parts(cpu.read(address, 8))
    attributes = parts[2]
    if not attributes & SEGMENT and attributes >> 8 & 0xF not in system_types:
        return None
    return parts if _reachable(selector, attributes, cpu.cpl) else None


def port_permitted(cpu: Processor, port: int, size: int) -> bool:
    """Whether the TSS's I/O permission bitmap allows `size` ports from `port` on (SDM vol. 1, 19.5.2)."""
    _selector, base, limit, attributes = cpu.segment(TR)
    if not attributes & PRESENT or limit < 0x67:
        return False
    try:
        at = cpu.read(base + 0x66 & MASK64, 2) + (port >> 3)
        if at + 1 > limit:
            return False
        bits = cpu.read(base + at & MASK64, 2)
    except Fault:
        return False
    return not bits >> (port & 7) & ((1 << size) - 1)
