"""A32 words as the tactics need them: branches, loads from the shared page, and what tells code from literal pools.

Room: `bt/tactics/arm`. Encodings by the ARM ARM, A5 and A8. Everything here is about A32 words in numbers.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import numpy as np

from bt.tactics.tactics import OutOfReach
from paravirt import abi

if TYPE_CHECKING:
    from numpy.typing import NDArray

UDF: Final = 0xE7F0_00F0
NOP: Final = 0xE1A0_0000
"""MOV R0, R0: a no-operation on every ARM processor."""
BRANCH: Final = 0xEA00_0000
LOAD_PC: Final = 0xE51F_F004
"""LDR PC, [PC, #-4]."""
ALWAYS: Final = 0xE
_REACH: Final = 1 << 25
AROUND: Final = 4
"""Words on either side by which a word is judged."""


def packed(*words: int) -> bytes:
    """Words in the guest's byte order: instructions are little-endian in ARMv7."""
    return struct.pack(f"<{len(words)}I", *words)


def branch_word(source: int, target: int, condition: int = ALWAYS) -> int:
    """B from `source` to `target`. Raises `OutOfReach`."""
    distance = target - source - 8
    if not -_REACH <= distance < _REACH or distance & 3:
        raise OutOfReach(f"{target:#x} is out of a branch's reach from {source:#x}")
    return condition << 28 | 0x0A00_0000 | distance >> 2 & 0xFF_FFFF


def shared_word(load: bool, register: int, at: int, offset: int, condition: int = ALWAYS) -> int:
    """LDR or STR of a word of the shared page, relative to PC, by an instruction at `at` in the fixup region."""
    alias = (at & -abi.ARM_UNIT) + abi.ARM_UNIT_END
    distance = alias + offset - (at + 8)
    up = distance >= 0
    if abs(distance) > 0xFFF:
        raise OutOfReach(f"the shared page's word {offset:#x} is out of a load's reach from {at:#x}")
    word = condition << 28 | 0x0500_0000 | int(up) << 23 | int(load) << 20 | 15 << 16 | register << 12
    return word | abs(distance)


def branch_targets(code: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Byte offsets, from the first word, to which B, BL and BLX among the words lead."""
    at = np.flatnonzero(code & np.uint32(0x0E00_0000) == np.uint32(0x0A00_0000))
    distance = (code[at].astype(np.int64) & 0xFF_FFFF) << 2
    return at * 4 + 8 + np.where(distance >= _REACH, distance - 2 * _REACH, distance)


def literal_words(code: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Which words are literals: loaded by an LDR relative to PC, and behind a word that does not go on.

    A literal pool stands where execution cannot run into it. So a word counts as a literal when some LDR, LDRD or VLDR
    reads it and the run of such words that it is in begins behind an unconditional branch or return, or behind
    padding; both must hold, since data may look like a load.
    """
    read = np.zeros(len(code) + 2, dtype=bool)
    for mask, value, shift, bits, words in (
        (0x0F7F_0000, 0x051F_0000, 0, 0xFFF, 1),  # LDR Rt, [PC, #±imm12]
        (0x0F3F_0E00, 0x0D1F_0A00, 2, 0xFF, 2),  # VLDR
    ):
        at = np.flatnonzero((code & np.uint32(mask) == np.uint32(value)) & (code < np.uint32(0xF000_0000)))
        distance = (code[at].astype(np.int64) & bits) << shift
        goal = at * 4 + 8 + np.where(code[at] & np.uint32(1 << 23), distance, -distance)
        for extra in range(words):
            place = (goal >> 2) + extra
            read[place[(place >= 0) & (place < len(code)) & (goal & 3 == 0)]] = True
    at = np.flatnonzero((code & np.uint32(0x0E5F_00F0) == np.uint32(0x004F_00D0)) & (code < np.uint32(0xF000_0000)))
    distance = (code[at].astype(np.int64) >> 4 & 0xF0) | (code[at].astype(np.int64) & 15)  # LDRD
    goal = at * 4 + 8 + np.where(code[at] & np.uint32(1 << 23), distance, -distance)
    for extra in range(2):
        place = (goal >> 2) + extra
        read[place[(place >= 0) & (place < len(code)) & (goal & 3 == 0)]] = True
    read = read[: len(code)]
    # The run of read words around each, and the word before it.
    edges = np.flatnonzero(read & ~np.concatenate(([False], read[:-1])))
    literal = np.zeros(len(code), dtype=bool)
    ends = np.flatnonzero(read & ~np.concatenate((read[1:], [False]))) + 1
    before = edges - 1
    stops = np.zeros(len(edges), dtype=bool)
    inside = before >= 0
    stops[inside] = does_not_go_on(code[before[inside]])
    stops[~inside] = True
    for start, end in zip(edges[stops].tolist(), ends[stops].tolist(), strict=True):
        literal[start:end] = True
    return literal


def sparse_words(code: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Which words stand among words that are no instructions, by the condition field: nearly all instructions of a
    kernel are unconditional, and of random data one word in sixteen looks so.

    A word counts as such where fewer than half of the eight words around it are unconditional; a conditional word where
    not all of them are, or where a PC-relative address is made of it or of the word before it.
    """
    always = (code >= np.uint32(0xE000_0000)) & (code < np.uint32(0xF000_0000))
    count = np.concatenate(([0], np.cumsum(always)))
    at = np.arange(len(code))
    low, high = np.maximum(at - AROUND, 0), np.minimum(at + AROUND + 1, len(code))
    others, around = count[high] - count[low] - always, high - low - 1
    conditional = code < np.uint32(0xE000_0000)
    sparse = (2 * others < around) | conditional & (others < around)
    named = np.zeros(len(code) + 1, dtype=bool)
    for value, sign in ((0x028F_0000, 1), (0x024F_0000, -1)):  # ADD and SUB Rd, PC, #imm
        made = np.flatnonzero((code & np.uint32(0x0FFF_0000) == np.uint32(value)) & (code < np.uint32(0xF000_0000)))
        rotate = (code[made].astype(np.int64) >> 8 & 15) * 2
        small = code[made].astype(np.int64) & 0xFF
        goal = made * 4 + 8 + sign * ((small >> rotate | small << 32 - rotate) & 0xFFFF_FFFF)
        place = goal[(goal & 3 == 0) & (goal >= 0) & (goal < 4 * len(code))] >> 2
        named[place] = named[place + 1] = True
    return np.asarray(sparse | conditional & named[: len(code)])


def sparse_at(code: NDArray[np.uint32], places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """`sparse_words` of the words around each of the places, and in it the place itself."""
    near = places[:, None] + np.arange(-AROUND, AROUND + 1)
    inside = (near >= 0) & (near < len(code))
    values = code[np.clip(near, 0, max(len(code) - 1, 0))]
    always = (values >= np.uint32(0xE000_0000)) & (values < np.uint32(0xF000_0000)) & inside
    others = always.sum(axis=1) - always[:, AROUND]
    around = inside.sum(axis=1) - 1
    conditional = values[:, AROUND] < np.uint32(0xE000_0000)
    named = np.zeros(len(places), bool)
    for value, sign in ((0x028F_0000, 1), (0x024F_0000, -1)):  # ADD and SUB Rd, PC, #imm
        made = (values & np.uint32(0x0FFF_0000) == np.uint32(value)) & (values < np.uint32(0xF000_0000)) & inside
        row = np.nonzero(made)[0]
        rotate = (values[made].astype(np.int64) >> 8 & 15) * 2
        small = values[made].astype(np.int64) & 0xFF
        goal = near[made] * 4 + 8 + sign * ((small >> rotate | small << 32 - rotate) & 0xFFFF_FFFF)
        behind = goal - 4 * places[row]
        before = behind == -4  # the word before it, where that is looked at
        before &= (places[row] > 0) & inside[row, AROUND - 1]
        named[row[(behind == 0) | before]] = True
    return np.asarray((2 * others < around) | conditional & ((others < around) | named))


def does_not_go_on(words: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Which words never let execution run on into the next: unconditional branches and returns, traps, padding."""
    stops = words & np.uint32(0xFF00_0000) == np.uint32(0xEA00_0000)  # B
    stops |= words & np.uint32(0xFFFF_FFF0) == np.uint32(0xE12F_FF10)  # BX
    stops |= words & np.uint32(0xFE10_8000) == np.uint32(0xE810_8000)  # LDM with PC
    stops |= words & np.uint32(0xFC10_F000) == np.uint32(0xE410_F000)  # LDR PC
    stops |= words & np.uint32(0xFDE0_F000) == np.uint32(0xE1A0_F000)  # MOV PC
    stops |= words & np.uint32(0xFC00_F000) == np.uint32(0xE000_F000)  # data processing into PC
    stops |= words & np.uint32(0xFFF0_00F0) == np.uint32(UDF)
    stops |= words & np.uint32(0xFF00_0000) == np.uint32(0xEB00_0000)  # BL of what does not come back, as panic
    stops |= words == np.uint32(0)
    return np.asarray(stops)
