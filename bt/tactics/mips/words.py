"""MIPS32 words: the few that rewriting makes, and what it must know of those it finds.

Room: `bt/tactics/mips`, knowledge about encodings (MIPS32 ISA, MD00086). Words are numbers; the byte order is put on
by who writes them. Knows no image and no tactic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from bt.tactics.tactics import OutOfReach

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOP: Final = 0
EHB: Final = 0x0000_00C0
SP: Final = 29
TRAP: Final = 0x4200_003F
"""A reserved function of coprocessor 0: it raises CpU in user mode and RI in kernel mode, and means nothing."""
_LW, _SW, _J, _SPECIAL, _REGIMM, _ANDI = 0x23, 0x2B, 0x02, 0x00, 0x01, 0x0C
_REGION: Final = 28


def load(target: int, address: int) -> int:
    """LW target, address($0). `address` is in the first or last 32 KiB. Raises `OutOfReach`."""
    return _LW << 26 | target << 16 | _from_zero(address)


def store(source: int, address: int) -> int:
    """SW source, address($0). Raises `OutOfReach`."""
    return _SW << 26 | source << 16 | _from_zero(address)


def _from_zero(address: int) -> int:
    if not (0 <= address < 0x8000 or 0xFFFF_8000 <= address <= 0xFFFF_FFFF):
        raise OutOfReach(f"{address:#x} is out of reach from $0")
    return address & 0xFFFF


def set_if_nonzero(register: int) -> int:
    """SLTU register, $0, register."""
    return register << 16 | register << 11 | 0x2B


def keeps_lowest_bit(word: int, register: int) -> bool:
    """Whether the word is ANDI register, register, 1."""
    return word == _ANDI << 26 | register << 21 | register << 16 | 1


def jump(source: int, target: int) -> int:
    """J, from its own address: to the region of 256 MiB of its delay slot. Raises `OutOfReach`."""
    if (source + 4 ^ target) >> _REGION or target & 3:
        raise OutOfReach(f"{target:#x} is not in the 256 MiB region of {source:#x}")
    return _J << 26 | target >> 2 & 0x3FF_FFFF


def has_delay_slot(word: int) -> bool:
    """Whether the word is a branch or jump whose next instruction is executed before it takes effect."""
    major, function = word >> 26, word & 0x3F
    if major == _SPECIAL:
        return function in (8, 9)
    if major == _REGIMM:
        return word >> 16 & 0x0C == 0
    return 2 <= major <= 7 or 0x14 <= major <= 0x17 or (major == 0x11 and word >> 21 & 31 == 8)


def branch_targets(code: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Byte offsets, from the first word, to which PC-relative branches lead.

    Jumps name a place in the region of 256 MiB, so they say nothing without an address: see `jump_targets`.
    """
    major = code >> np.uint32(26)
    relative = ((major >= 4) & (major <= 7)) | ((major >= 0x14) & (major <= 0x17))
    relative |= (major == _REGIMM) & (code >> np.uint32(16) & np.uint32(0x0C) == 0)
    relative |= (major == 0x11) & (code >> np.uint32(21) & np.uint32(31) == 8)
    at = np.flatnonzero(relative)
    distance = (code[at] & np.uint32(0xFFFF)).astype(np.uint16).astype(np.int16).astype(np.int64)
    return (at + 1 + distance) * 4


def jump_targets(code: NDArray[np.uint32], address: int) -> NDArray[np.int64]:
    """Guest-virtual addresses to which J and JAL lead, from words at `address`."""
    at = np.flatnonzero((code >> np.uint32(26) & np.uint32(0x3E)) == _J)
    region = (address + 4 * at.astype(np.int64) + 4) & ~((1 << _REGION) - 1)
    return region | (code[at] & np.uint32(0x3FF_FFFF)).astype(np.int64) << 2
