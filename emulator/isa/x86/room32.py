"""The place in which the 32-bit table's examples are run: as `room`, for protected mode with PAE paging.

Room: `emulator/isa/x86`. Code, landing place, data and stack are where `room` has them; tables, descriptors and gates
have their legacy forms. Selectors follow the order that SYSENTER and SYSEXIT want.
"""

import struct
from collections.abc import Sequence
from typing import Final

from emulator.isa.x86 import registers as r
from emulator.isa.x86.room import CODE, DATA, END, GDT, IDT, LAND, ROOM_SIZE, ROOT, STACK, TSS

KERNEL_CODE: Final = 0x10
KERNEL_DATA: Final = 0x18
USER_CODE: Final = 0x23
USER_DATA: Final = 0x2B
TSS_SELECTOR: Final = 0x30
LDT_SELECTOR: Final = 0x38

SELECTORS: Final = {0: (KERNEL_CODE, KERNEL_DATA), 3: (USER_CODE, USER_DATA)}
"""Code and data selector by privilege level."""

_TSS_LIMIT: Final = 0x67
_LDT_LIMIT: Final = 0x7
LDT: Final = TSS + 0x800

_DESCRIPTORS: Final = (
    0,
    0,
    0x00CF_9B00_0000_FFFF,  # 0x10: code, 32 bits, level 0
    0x00CF_9300_0000_FFFF,  # 0x18: data, level 0
    0x00CF_FB00_0000_FFFF,  # 0x20: code, 32 bits, level 3
    0x00CF_F300_0000_FFFF,  # 0x28: data, level 3
    0x0000_8900_0000_0000 | TSS << 16 | _TSS_LIMIT,  # 0x30: task-state segment of 32 bits, available
    0x0000_8200_0000_0000 | LDT << 16 | _LDT_LIMIT,  # 0x38: local descriptor table
)

GDT_LIMIT: Final = len(_DESCRIPTORS) * 8 - 1
IDT_LIMIT: Final = 0x7FF

SYSTEM_DESCRIPTORS: Final = {
    r.LDTR: (LDT_SELECTOR, LDT, _LDT_LIMIT),
    r.TR: (TSS_SELECTOR, TSS, _TSS_LIMIT),
}
"""Selector, base and limit of LDTR and TR."""


def attributes_of(selector: int) -> int:
    """Attributes of a selector's descriptor: bits 8 to 23 of its second word, at their place."""
    return _DESCRIPTORS[selector >> 3] >> 32 & 0xF0_FF00


def furnish(room: memoryview, code: bytes, data: bytes, stack: Sequence[int]) -> None:
    """Write tables, code, data and 32-bit words of stack into `room`, which is `ROOM_SIZE` zero bytes."""
    open_to_all = r.PAGE_P | r.PAGE_RW | r.PAGE_US
    _write(room, ROOT, (ROOT + 0x1000) | r.PAGE_P)
    _write(room, ROOT + 0x1000, (ROOT + 0x2000) | open_to_all)
    for page in range(ROOM_SIZE >> 12):
        _write(room, ROOT + 0x2000 + page * 8, page << 12 | open_to_all)
    for number, descriptor in enumerate(_DESCRIPTORS):
        _write(room, GDT + number * 8, descriptor)
    for vector in range(256):
        _write(room, IDT + vector * 8, _gate(vector))
    room[CODE : CODE + len(code) + len(END)] = code + END
    room[LAND : LAND + len(END)] = END
    room[DATA : DATA + len(data)] = data
    struct.pack_into(f"<{len(stack)}I", room, STACK, *stack)


def _gate(vector: int) -> int:
    """An interrupt gate to the landing place; only vector 0x30 is open to level 3."""
    level = 3 if vector == 0x30 else 0
    return (LAND & 0xFFFF) | KERNEL_CODE << 16 | (0x8E00 | level << 13) << 32 | (LAND >> 16) << 48


def _write(room: memoryview, address: int, value: int) -> None:
    struct.pack_into("<Q", room, address, value)
