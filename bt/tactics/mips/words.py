"""MIPS32 words: the few that rewriting makes, and what it must know of those it finds.

Room: `bt/tactics/mips`, knowledge about encodings (MIPS32 ISA, MD00086). Words are numbers; the byte order is put on
by who writes them. Knows no image and no tactic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from bt.tactics.tactics import OutOfReach

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOP: Final = 0
EHB: Final = 0x0000_00C0
AT: Final = 1
SP: Final = 29
RA: Final = 31
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


_MOVABLE_SPECIAL: Final = frozenset(
    {0, 2, 3, 4, 6, 7, 10, 11, 15, *range(16, 20), *range(24, 28), 33, *range(35, 40), 42, 43}
)
"""SLL to SRAV, MOVZ, MOVN, SYNC, HI and LO, MULT to DIVU, ADDU, SUBU, AND to NOR, SLT, SLTU: these raise nothing."""
_MOVABLE_SPECIAL2: Final = frozenset({0, 1, 2, 4, 5, 32, 33})
_MOVABLE_SPECIAL3: Final = frozenset({0, 4, 32})
_MOVABLE_MAJOR: Final = frozenset(range(9, 16))
_ACCESSES: Final = frozenset({*range(0x20, 0x27), *range(0x28, 0x2C), 0x2E})


def moves(word: int) -> bool:
    """Whether an instruction does the same anywhere and raises no exception: one of general registers, HI and LO."""
    major, function = word >> 26, word & 0x3F
    if major == _SPECIAL:
        return function in _MOVABLE_SPECIAL
    if major == 0x1C:
        return function in _MOVABLE_SPECIAL2
    if major == 0x1F:
        return function in _MOVABLE_SPECIAL3
    return major in _MOVABLE_MAJOR


def accesses(word: int) -> bool:
    """Whether an instruction is a plain load or store, which does the same anywhere, but may raise an exception."""
    return word >> 26 in _ACCESSES


def immediate(major: int, source: int, target: int, value: int) -> int:
    """An instruction of two registers and 16 bits."""
    return major << 26 | source << 21 | target << 16 | value & 0xFFFF


def three(function: int, target: int, source: int, other: int) -> int:
    """An instruction of three registers: `target` from `source` (rs) and `other` (rt)."""
    return source << 21 | other << 16 | target << 11 | function


class SlotBranch(NamedTuple):
    """What a branch before a delay slot does."""

    kind: str
    """"jump" (J), "register" (JR), "call" (JAL), "register call" (JALR), "conditional"."""
    reads: tuple[int, ...]
    """Registers that it looks at."""
    links: int
    """The register that gets the address behind the delay slot; 0: none."""


def slot_branch(word: int) -> SlotBranch | None:
    """The branch, where it always runs its delay slot; None for what is none, or is not understood (branch likely)."""
    major, function, source, target = word >> 26, word & 0x3F, word >> 21 & 31, word >> 16 & 31
    if major == _SPECIAL and function == 8:
        return SlotBranch("register", (source,), 0)
    if major == _SPECIAL and function == 9:
        return SlotBranch("register call", (source,), word >> 11 & 31)
    if major in (2, 3):
        return SlotBranch("jump", (), 0) if major == 2 else SlotBranch("call", (), RA)
    if major in (4, 5):
        return SlotBranch("conditional", (source, target), 0)
    if major in (6, 7) or (major == _REGIMM and target in (0, 1)):
        return SlotBranch("conditional", (source,), 0)
    return None


def branch_distance(word: int) -> int:
    """Bytes from a conditional branch to where it leads."""
    return 4 + (((word & 0xFFFF) ^ 0x8000) - 0x8000) * 4


def made_addresses(code: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Guest-virtual addresses that LUI and an ADDIU or ORI soon behind it put together."""
    found = []
    upper = np.flatnonzero(code >> np.uint32(26) == 0x0F)
    register = code[upper] >> np.uint32(16) & np.uint32(31)
    for distance in range(1, _SOON + 1):
        inside = upper + distance < len(code)
        at, own = upper[inside], register[inside]
        later = code[at + distance]
        major = later >> np.uint32(26)
        makes = ((major == 9) | (major == 13)) & (later >> np.uint32(21) & np.uint32(31) == own)
        high = (code[at[makes]].astype(np.int64) & 0xFFFF) << 16
        low = later[makes].astype(np.int64) & 0xFFFF
        signed = np.where(major[makes] == 9, (low ^ 0x8000) - 0x8000, low)
        found.append(high + signed & 0xFFFF_FFFF)
    return np.concatenate(found)


def does_not_go_on(code: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Which words, with their delay slot, never let execution run on: J, JR and B."""
    stops = code & np.uint32(0xFC1F_FFFF) == np.uint32(8)
    stops |= code >> np.uint32(26) == np.uint32(_J)
    return np.asarray(stops | (code & np.uint32(0xFFFF_0000) == np.uint32(0x1000_0000)))


_SOON: Final = 8
"""Instructions between the two halves of an address, at most."""
