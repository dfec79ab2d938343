"""T32 in numbers: where instructions begin, literals, branches, IT blocks, and what may be moved.

Room: `bt/tactics/arm`. Encodings by the ARM ARM, A6 and A8. An instruction of 32 bits is a word with its first halfword
high, as in the table.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from bt.tactics.tactics import OutOfReach

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Halfwords = NDArray[np.uint16]
    Flags = NDArray[np.bool_]

UDF: Final = 0xDEF0
UDF_WIDE: Final = 0xF7F0_A0F0
BKPT: Final = 0xBE00
"""Executed whatever an IT block says."""
NOP: Final = 0xBF00
NOP_WIDE: Final = 0xF3AF_8000
BX_PC: Final = 0x4778
LOAD_PC: Final = 0xF8DF_F000
"""LDR.W PC, [PC, #0]."""
_REACH: Final = 1 << 24
_PC: Final = 15
LONGEST_BLOCK: Final = 4
"""Instructions of an IT block."""


class Block(NamedTuple):
    """Where in an IT block an instruction stands."""

    place: int
    """From 1; 0: in none."""
    length: int

    @property
    def last(self) -> bool:
        """A branch may stand here."""
        return self.place == self.length


def packed(*instructions: int) -> bytes:
    """Instructions in memory's order: halfwords, the first one first."""
    parts = []
    for one in instructions:
        parts += [one] if one < 1 << 16 else [one >> 16, one & 0xFFFF]
    return struct.pack(f"<{len(parts)}H", *parts)


def branch(source: int, target: int) -> bytes:
    """B.W, which reaches 16 MiB. Raises `OutOfReach`."""
    distance = target - source - 4
    if not -_REACH <= distance < _REACH or distance & 1:
        raise OutOfReach(f"{target:#x} is out of a branch's reach from {source:#x}")
    sign = distance >> 24 & 1
    first = 0xF000 | sign << 10 | distance >> 12 & 0x3FF
    one, two = (~(distance >> 23 & 1) ^ sign) & 1, (~(distance >> 22 & 1) ^ sign) & 1
    return packed(first << 16 | 0x9000 | one << 13 | two << 11 | distance >> 1 & 0x7FF)


def boundaries(code: Halfwords, is_code: Flags) -> tuple[Flags, Flags]:
    """Which halfwords begin an instruction, and which of these one of 32 bits. Where code begins, so does one.

    A halfword that cannot begin 32 bits ends one instruction in any case; so within each run of those that can, every
    second one does.
    """
    wide = (code >= np.uint16(0xE800)) & is_code
    at = np.arange(len(code))
    run = np.maximum.accumulate(np.where(wide, -1, at))  # the last one before each that is not wide
    even = wide & ((at - run) & 1 == 1)
    second = np.concatenate(([False], even[:-1]))
    return is_code & np.where(wide, even, ~second), even


def does_not_go_on(first: Halfwords, second: Halfwords) -> Flags:
    """Which instructions never let execution run on: unconditional branches, returns, traps, and BL (of what does not
    come back)."""
    stops = (first & np.uint16(0xF800)) == 0xE000  # B
    stops |= (first & np.uint16(0xFF80)) == 0x4700  # BX
    stops |= (first & np.uint16(0xFF00)) == 0xBD00  # POP with PC
    stops |= (first & np.uint16(0xFF87)) == 0x4687  # MOV PC
    stops |= (first & np.uint16(0xFF00)) == 0xDE00
    stops |= (first == 0) | (first == NOP) | (first == 0x46C0)  # padding
    wide = (first >> np.uint16(11)) == 0x1E
    stops |= wide & ((second & np.uint16(0x9000)) == 0x9000)  # B.W, BL
    stops |= ((first & np.uint16(0xFFD0)) == 0xE890) & (second >> np.uint16(15) == 1)  # LDM with PC
    stops |= ((first & np.uint16(0xFF70)) == 0xF850) & (second >> np.uint16(12) == _PC)  # LDR PC
    stops |= (first == 0xE8DF) & ((second & np.uint16(0xFFE0)) == 0xF000)  # TBB, TBH
    return np.asarray(stops)


def literals(code: Halfwords, begins: Flags, phase: int) -> Flags:
    """Which halfwords are literals, as `words.literal_words` tells them; the first halfword lies `phase` halfwords
    behind a word's address."""
    read = np.zeros(len(code) + 4, bool)
    second = np.append(code[1:], np.uint16(0))
    base = (np.arange(len(code)) + phase + 2 & -2) - phase  # of a PC-relative load, in halfwords
    short = np.flatnonzero(begins & (code >> np.uint16(11) == 9))
    goals = [base[short] + 2 * (code[short].astype(np.int64) & 0xFF)]
    sizes = [np.full(len(short), 2)]
    for mask, value, shift, bits, size in (
        (0xFF7F, 0xF85F, 0, 0xFFF, 2),  # LDR.W
        (0xFF3F, 0xED1F, 1, 0xFF, 4),  # VLDR: words, in halfwords
        (0xFF7F, 0xE95F, 1, 0xFF, 4),  # LDRD
    ):
        at = np.flatnonzero(begins & (code & np.uint16(mask) == value))
        distance = second[at].astype(np.int64) & bits
        distance = distance << 1 if shift else distance >> 1
        goals.append(base[at] + np.where(code[at] & np.uint16(0x80), distance, -distance))
        sizes.append(np.full(len(at), size))
    goal, reads = np.concatenate(goals), np.concatenate(sizes)
    for extra in range(4):
        place = goal[reads > extra] + extra
        read[place[(place >= 0) & (place < len(code))]] = True
    read = read[: len(code)]
    stops = begins & does_not_go_on(code, second)
    wide = begins & (code >= np.uint16(0xE800))
    behind = (
        np.concatenate(([True], (stops & ~wide)[:-1]))
        | np.concatenate(([True, True], (stops & wide)[:-2]))[: len(code)]
    )
    edges = np.flatnonzero(read & ~np.concatenate(([False], read[:-1])))
    ends = np.flatnonzero(read & ~np.concatenate((read[1:], [False]))) + 1
    found = np.zeros(len(code), bool)
    for start, end in zip(edges.tolist(), ends.tolist(), strict=True):
        if behind[start]:
            found[start:end] = True
    return found


def branch_targets(code: Halfwords, begins: Flags) -> NDArray[np.int64]:
    """Byte offsets to which direct branches and tables of TBB and TBH lead."""
    second = np.append(code[1:], np.uint16(0)).astype(np.int64)
    wide_code = code.astype(np.int64)
    found = []

    def add(at: NDArray[np.int64], distance: NDArray[np.int64], bits: int) -> None:
        found.append(2 * at + 4 + np.where(distance >> bits - 1 & 1, distance - (1 << bits), distance))

    at = np.flatnonzero(begins & (code >> np.uint16(12) == 0xD) & (code & np.uint16(0xE00) != 0xE00))
    add(at, (wide_code[at] & 0xFF) << 1, 9)
    at = np.flatnonzero(begins & (code >> np.uint16(11) == 0x1C))
    add(at, (wide_code[at] & 0x7FF) << 1, 12)
    at = np.flatnonzero(begins & (code & np.uint16(0xF500) == 0xB100))  # CBZ, CBNZ
    found.append(2 * at + 4 + (wide_code[at] >> 3 & 0x40 | wide_code[at] >> 2 & 0x3E))
    branches = begins & (code >> np.uint16(11) == 0x1E) & (second & 0x8000 != 0)
    conditional = second & 0x5000 == 0
    at = np.flatnonzero(branches & conditional & (wide_code & 0x380 != 0x380))
    one, two = wide_code[at], second[at]
    reach = (one & 0x3F) << 12 | (two & 0x7FF) << 1
    add(at, (one >> 10 & 1) << 20 | (two >> 11 & 1) << 19 | (two >> 13 & 1) << 18 | reach, 21)
    at = np.flatnonzero(branches & ~conditional)  # B.W, BL, BLX
    one, two = wide_code[at], second[at]
    sign = one >> 10 & 1
    high = sign << 24 | ((two >> 13 & 1) ^ sign ^ 1) << 23 | ((two >> 11 & 1) ^ sign ^ 1) << 22
    add(at, high | (one & 0x3FF) << 12 | (two & 0x7FF) << 1, 25)
    leads = np.concatenate(found)
    tables = np.flatnonzero(begins & (code == 0xE8DF) & (second & 0xFFE0 == 0xF000))
    extra = [goal for at in tables.tolist() for goal in _table(code, at)]
    return np.concatenate((leads & -2, np.array(extra, np.int64)))


def _table(code: Halfwords, at: int) -> Sequence[int]:
    """Where a table branch leads: its table ends where the first of its targets begins."""
    big = int(code[at + 1]) >> 4 & 1
    data = code[at + 2 : at + 2 + (0x1_0000 if big else 256)]
    entries = data.tolist() if big else np.frombuffer(data.tobytes(), np.uint8).tolist()
    start, limit = 2 * at + 4, 2 * len(code)
    goals = []
    for number, entry in enumerate(entries):
        if start + number * (1 + big) >= limit:
            break
        goals.append(start + 2 * entry)
        limit = min(limit, goals[-1])
    return goals


def padding(code: Halfwords, boundaries: int) -> list[tuple[int, int]]:
    """Offset and length in bytes of runs of NOPs, whole words of them, behind what never lets execution run on."""
    second = np.append(code[1:], np.uint16(0))
    stops = does_not_go_on(code, second) & (code != NOP) & (code != 0) & (code != 0x46C0)
    found = []
    for at in np.flatnonzero(stops).tolist():
        if not boundaries >> 2 * at & 1:
            continue
        first = end = at + (2 if code[at] >= 0xE800 else 1)
        while end < len(code) and code[end] in (NOP, 0x46C0):
            end += 1
        first += first & 1
        if end > first:
            found.append((2 * first, 2 * (end - first)))
    return found


def far_branch(_source: int, target: int) -> bytes:
    """LDR.W PC from the word behind it, at an address of whole words: to T32 or A32, as bit 0 says."""
    return packed(LOAD_PC) + struct.pack("<I", target)


def block_at(before: Sequence[int]) -> Block:
    """Where in an IT block an instruction stands, by the first halfwords of those before it, the nearest first."""
    for place, first in enumerate(before[:LONGEST_BLOCK], 1):
        if first >> 8 == 0xBF and first & 15:
            length = 4 - ((first & 15 & -(first & 15)).bit_length() - 1)
            return Block(place, length) if place <= length else Block(0, 0)
    return Block(0, 0)


def moves(instruction: int) -> bool:
    """Whether a 16-bit instruction does the same anywhere and cannot fault: one of registers alone, PC left out."""
    if instruction < 0x4400:  # shifts, ADD, SUB, MOV, CMP, data processing
        return True
    if instruction < 0x4700:  # ADD, CMP, MOV of high registers
        return (instruction >> 3 & 15) != _PC and (instruction >> 4 & 8 | instruction & 7) != _PC
    if 0xA800 <= instruction < 0xB100 or 0xB200 <= instruction < 0xB300:  # ADD of SP, extensions
        return True
    return 0xBA00 <= instruction < 0xBB00 or instruction == NOP  # REV and kin
