"""The place in which the table's examples are run: page tables, descriptors, code, data and a stack.

Room: `emulator/isa/x86`. Addresses are guest-physical and guest-virtual at once (identity mapped, all
pages open to user mode, so that privilege is the only difference between two runs). Selectors
follow the order that SYSCALL and SYSRET want.
"""

import struct
from collections.abc import Sequence
from typing import Final

from emulator.isa.x86 import registers as r

ROOT: Final = 0x1000
"""PML4; the PDPT, page directory and page table follow it."""
GDT: Final = 0x5000
IDT: Final = 0x6000
TSS: Final = 0x7000
CODE: Final = 0x8000
"""Where the instruction stands."""
LAND: Final = 0x8800
"""Where far transfers and returns are told to go."""
DATA: Final = 0x9000
STACK: Final = 0xA800
"""Initial stack pointer, with room on both sides."""
ROOM_SIZE: Final = 0x10000

END: Final = b"\x0f\x0b"
"""UD2, which ends every run: it is the one exception that both modes raise alike."""

KERNEL_CODE: Final = 0x10
KERNEL_DATA: Final = 0x18
USER_DATA: Final = 0x2B
USER_CODE: Final = 0x33
TSS_SELECTOR: Final = 0x38
LDT_SELECTOR: Final = 0x48

SELECTORS: Final = {0: (KERNEL_CODE, KERNEL_DATA), 3: (USER_CODE, USER_DATA)}
"""Code and data selector by privilege level."""

_TSS_LIMIT: Final = 0x67
_LDT_LIMIT: Final = 0x7

_DESCRIPTORS: Final = (
    0,
    0,
    0x00AF_9B00_0000_FFFF,  # 0x10: code, 64 bits, level 0
    0x00CF_9300_0000_FFFF,  # 0x18: data, level 0
    0x00CF_FB00_0000_FFFF,  # 0x20: code, 32 bits, level 3
    0x00CF_F300_0000_FFFF,  # 0x28: data, level 3
    0x00AF_FB00_0000_FFFF,  # 0x30: code, 64 bits, level 3
    0x0000_8900_0000_0000 | TSS << 16 | _TSS_LIMIT,  # 0x38: task-state segment, available
    0,
    0x0000_8200_0000_0000 | (TSS + 0x800) << 16 | _LDT_LIMIT,  # 0x48: local descriptor table
    0,
)

GDT_LIMIT: Final = len(_DESCRIPTORS) * 8 - 1
IDT_LIMIT: Final = 0xFFF

SYSTEM_DESCRIPTORS: Final = {
    r.LDTR: (LDT_SELECTOR, TSS + 0x800, _LDT_LIMIT),
    r.TR: (TSS_SELECTOR, TSS, _TSS_LIMIT),
}
"""Selector, base and limit of LDTR and TR."""


def attributes_of(selector: int) -> int:
    """Attributes of a selector's descriptor: bits 8 to 23 of its second word, at their place."""
    return _DESCRIPTORS[selector >> 3] >> 32 & 0xF0_FF00


def furnish(room: memoryview, code: bytes, data: bytes, stack: Sequence[int]) -> None:
    """Write tables, code, data and stack into `room`, which is `ROOM_SIZE` zero bytes."""
    upper = r.PAGE_P | r.PAGE_RW | r.PAGE_US
    for level in range(3):
        _write(room, ROOT + level * 0x1000, (ROOT + (level + 1) * 0x1000) | upper)
    for page in range(ROOM_SIZE >> 12):
        _write(room, ROOT + 0x3000 + page * 8, page << 12 | upper)
    for number, descriptor in enumerate(_DESCRIPTORS):
        _write(room, GDT + number * 8, descriptor)
    for vector in range(256):
        _write(room, IDT + vector * 16, _gate(vector))
    room[CODE : CODE + len(code) + len(END)] = code + END
    room[LAND : LAND + len(END)] = END
    room[DATA : DATA + len(data)] = data
    for number, word in enumerate(stack):
        _write(room, STACK + number * 8, word)


def _gate(vector: int) -> int:
    """An interrupt gate to the landing place; only vector 0x30 is open to level 3."""
    level = 3 if vector == 0x30 else 0
    return (LAND & 0xFFFF) | KERNEL_CODE << 16 | (0x8E00 | level << 13) << 32 | (LAND >> 16) << 48


def _write(room: memoryview, address: int, value: int) -> None:
    struct.pack_into("<Q", room, address, value)
