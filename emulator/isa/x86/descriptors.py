"""Descriptors of x86-64 as integers: segments, system segments and gates, both ways.

Room: `emulator/isa/x86`. Functions on plain ints, since they stand in the path of every interrupt;
nothing here reads memory or knows a processor. Layouts: Intel SDM vol. 3A 3.4.5, 5.8.3, 6.14.1, 7.2.3.
"""

from functools import lru_cache

ACCESSED = 0x100
BUSY = 0x200
"""In a TSS descriptor's type: the task is busy."""
WRITABLE = READABLE = 0x200
"""Data segments: writable; code segments: readable."""
CONFORMING = EXPAND_DOWN = 0x400
"""Code segments: conforming; data segments: expand-down."""
CODE = 0x800
SEGMENT = 0x1000
"""The S bit: a code or data segment, not a system descriptor."""
DPL_SHIFT = 13
PRESENT = 0x8000
AVAILABLE = 0x10_0000
LONG = 0x20_0000
DEFAULT_BIG = 0x40_0000
GRANULARITY = 0x80_0000
ATTRIBUTES = 0xF0_FF00
"""The bits of a descriptor's second word that are attributes."""

TYPE_TSS_16 = 0x1
TYPE_LDT = 0x2
TYPE_TSS_16_BUSY = 0x3
TYPE_CALL_GATE_16 = 0x4
TYPE_TASK_GATE = 0x5
TYPE_TSS = 0x9
TYPE_TSS_BUSY = 0xB
TYPE_CALL_GATE = 0xC
TYPE_INTERRUPT_GATE = 0xE
TYPE_TRAP_GATE = 0xF

FLAT_LIMIT = 0xFFFF_FFFF
KERNEL_CODE = 0xA0_9B00
"""Attributes of a flat 64-bit code segment of DPL 0, accessed."""
FLAT_DATA = 0xC0_9300
"""Attributes of a flat writable data segment of DPL 0, accessed; also of a null SS."""
USER_CODE = KERNEL_CODE | 3 << DPL_SHIFT
USER_CODE_32 = 0xC0_9B00 | 3 << DPL_SHIFT
USER_DATA = FLAT_DATA | 3 << DPL_SHIFT
KERNEL_CODE_32 = 0xC0_9B00
"""Attributes of a flat 32-bit code segment of DPL 0, accessed."""
VIRTUAL_8086 = 0xF300
"""Attributes of every segment in virtual-8086 mode: writable data of DPL 3, 16 bits."""
VIRTUAL_8086_LIMIT = 0xFFFF


@lru_cache(maxsize=1024)
def segment_parts(descriptor: int) -> tuple[int, int, int]:
    """Base (32 bits), limit in bytes, attributes of an 8-byte segment descriptor."""
    limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF_0000
    if descriptor >> 55 & 1:
        limit = limit << 12 | 0xFFF
    return descriptor >> 16 & 0xFF_FFFF | descriptor >> 32 & 0xFF00_0000, limit, descriptor >> 32 & ATTRIBUTES


def system_parts(low: int, high: int) -> tuple[int, int, int]:
    """Base (64 bits), limit in bytes, attributes of a 16-byte LDT or TSS descriptor."""
    base, limit, attributes = segment_parts(low)
    return (high & 0xFFFF_FFFF) << 32 | base, limit, attributes


@lru_cache(maxsize=1024)
def gate_parts(low: int, high: int) -> tuple[int, int, int, int]:
    """Target selector, offset (64 bits), stack table index (0 = none), attributes of a 16-byte gate."""
    offset = low & 0xFFFF | low >> 32 & 0xFFFF_0000 | (high & 0xFFFF_FFFF) << 32
    return low >> 16 & 0xFFFF, offset, low >> 32 & 7, low >> 32 & 0xFF00


def legacy_gate_parts(gate: int) -> tuple[int, int, int, int]:
    """Target selector, offset (32 bits), number of parameters, attributes of an 8-byte gate; of a 16-bit one the
    offset's upper half is 0."""
    offset = gate & 0xFFFF | (gate >> 32 & 0xFFFF_0000 if gate >> 43 & 1 else 0)
    return gate >> 16 & 0xFFFF, offset, gate >> 32 & 31, gate >> 32 & 0xFF00


def segment_descriptor(base: int, limit: int, attributes: int) -> int:
    """The 8-byte descriptor of a segment; the inverse of `segment_parts`.

    Raises `ValueError` for a base over 32 bits, for attributes outside their bits, and for a limit
    that the granularity cannot express.
    """
    if not 0 <= base <= 0xFFFF_FFFF:
        raise ValueError(f"segment base {base:#x} does not fit in 32 bits: use a system descriptor")
    if attributes & ~ATTRIBUTES:
        raise ValueError(f"attributes {attributes:#x} have bits outside {ATTRIBUTES:#x}")
    units = limit
    if attributes & GRANULARITY:
        if limit & 0xFFF != 0xFFF:
            raise ValueError(f"limit {limit:#x} is no end of a 4 KiB page: clear the granularity bit")
        units = limit >> 12
    if not 0 <= units <= 0xF_FFFF:
        raise ValueError(f"limit {limit:#x} does not fit in 20 bits: set or clear the granularity bit")
    second = base & 0xFF00_0000 | base >> 16 & 0xFF | attributes | units & 0xF_0000
    return second << 32 | (base & 0xFFFF) << 16 | units & 0xFFFF


def system_descriptor(base: int, limit: int, attributes: int) -> tuple[int, int]:
    """Both halves of a 16-byte LDT or TSS descriptor; the inverse of `system_parts`."""
    if not 0 <= base <= 0xFFFF_FFFF_FFFF_FFFF:
        raise ValueError(f"system segment base {base:#x} does not fit in 64 bits")
    return segment_descriptor(base & 0xFFFF_FFFF, limit, attributes), base >> 32


def gate(
    selector: int, offset: int, kind: int, *, dpl: int = 0, stack: int = 0, present: bool = True
) -> tuple[int, int]:
    """Both halves of a 16-byte gate to `selector:offset`; `kind` is a TYPE_..._GATE, `stack` the IST index."""
    if not (0 <= selector <= 0xFFFF and 0 <= kind <= 0xF and 0 <= dpl <= 3 and 0 <= stack <= 7):
        raise ValueError(f"gate field out of range: selector {selector:#x} type {kind:#x} DPL {dpl} IST {stack}")
    if not 0 <= offset <= 0xFFFF_FFFF_FFFF_FFFF:
        raise ValueError(f"gate offset {offset:#x} does not fit in 64 bits")
    second = offset & 0xFFFF_0000 | (PRESENT if present else 0) | dpl << DPL_SHIFT | kind << 8 | stack
    return second << 32 | selector << 16 | offset & 0xFFFF, offset >> 32
