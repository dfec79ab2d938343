"""One page of x86 code, decoded linearly: at once, in parts, from another entry; and where its branches lead.

Room: `bt/tactics/x86`. Knows bytes only: no image, no hypervisor. Masks and offsets as in `bt.pagescan`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from iced_x86 import Code, Decoder

from bt.pagescan import PAGE, Found, PageScan, mask_of, offsets_of
from emulator.isa.x86.decode import REPORTED

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONGEST: Final = 15
"""Bytes of the longest x86 instruction (SDM 2.3.11)."""
_PREFIXES: Final = frozenset({0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3, *range(0x40, 0x50)})
_RESYNCHRONISE: Final = frozenset({int(Code.INVALID), int(Code.INT3)})
_MANY_CHANGES: Final = 1024
"""Changed bytes from which on a page is decoded anew instead of in parts."""


def decode(code: bytes, start: int, end: int, pristine: int, into: list[tuple[int, int, int]], bits: int = 64) -> int:
    """Decode `code` from `start` while offsets are below `end`; append (offset, length, `Code`), return the end.

    `pristine` is the mask of instruction boundaries of the page's original, or 0. It is the authority in two cases:
    an INT3 where the original has a longer instruction is one that the kernel is about to replace (`text_poke_bp`: its
    other bytes are half old, half new), so the original's length is skipped; and undecodable bytes are skipped up to
    the original's next boundary.
    """
    decoder = Decoder(bits, code, ip=0)
    decoder.position = start
    decoder.ip = start
    position = start
    for instruction in decoder:
        if position >= end:
            break
        kind, length = instruction.code, instruction.len
        if kind in _RESYNCHRONISE:
            length = _skip(kind, length, position, pristine)
            decoder.position = min(position + length, len(code))
            decoder.ip = position + length
        into.append((position, length, kind))
        position += length
    return position


def _skip(kind: int, length: int, position: int, pristine: int) -> int:
    """Bytes to go on from an INT3 or an invalid instruction."""
    if kind == Code.INT3:
        if pristine >> position & 1:
            later = pristine >> position + 1
            distance = (later & -later).bit_length() if later else 1
            return distance if distance <= LONGEST else 1
        return 1
    later = pristine >> position + 1
    distance = (later & -later).bit_length() if later else 0
    return distance if 0 < distance <= LONGEST else 1


def scan_page(code: bytes, after: bytes, start: int, pristine: int = 0, bits: int = 64) -> PageScan:
    """Decode a page of PAGE bytes linearly from offset `start`; `after` are up to LONGEST bytes that follow it."""
    found: list[tuple[int, int, int]] = []
    decode(code + after, start, PAGE, pristine, found, bits)
    return _collect(found)


def _collect(found: list[tuple[int, int, int]]) -> PageScan:
    flags = np.zeros(PAGE, bool)
    flags[[offset for offset, _, _ in found]] = True
    sites = tuple(Found(*one) for one in found if one[2] in REPORTED)
    overflow = max(0, found[-1][0] + found[-1][1] - PAGE) if found else 0
    return PageScan(sites, mask_of(flags), min(overflow, LONGEST))


def rescan_page(old: bytes, scan: PageScan, new: bytes, pristine: int = 0, bits: int = 64) -> PageScan:
    """The scan of `new` from that of `old` (page plus what follows), decoding only what changed.

    Decoding begins at the instruction with the first changed byte and ends where it meets a boundary of the old scan
    with no change before it; so the result is that of decoding the whole page from the same start.
    """
    if len(old) != len(new):
        return scan_page(new[:PAGE], new[PAGE:], scan.start, pristine, bits)
    changed = np.flatnonzero(np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8)).tolist()
    if not changed:
        return scan
    if len(changed) > _MANY_CHANGES:
        return scan_page(new[:PAGE], new[PAGE:], scan.start, pristine, bits)
    begins = offsets_of(scan.boundaries)
    boundaries, sites, overflow = scan.boundaries, list(scan.sites), scan.overflow
    index = 0
    while index < len(changed):
        at = int(np.searchsorted(begins, changed[index], side="right")) - 1
        if at < 0:  # in the tail of the previous page's last instruction
            index += 1
            continue
        start = int(begins[at])
        found: list[tuple[int, int, int]] = []
        position: int = start
        while position < PAGE:
            position = decode(new, position, position + 1, pristine, found, bits)
            while index < len(changed) and changed[index] < position:
                index += 1
            if position < PAGE and scan.boundaries >> position & 1:
                break
        else:
            overflow = min(max(0, position - PAGE), LONGEST)
            index = len(changed)
        end = min(position, PAGE)
        hole = (1 << end) - (1 << start)
        boundaries = boundaries & ~hole | sum(1 << offset for offset, _, _ in found)
        sites = [site for site in sites if not start <= site.offset < end]
        sites += [Found(*one) for one in found if one[2] in REPORTED]
    return PageScan(tuple(sorted(sites)), boundaries, overflow)


def with_entry(scan: PageScan, code: bytes, after: bytes, entry: int, bits: int = 64) -> PageScan:
    """The scan, made to agree with execution that begins at offset `entry`.

    Where `entry` is no boundary, decoding from it is the truth until both streams meet.
    """
    if scan.boundaries >> entry & 1:
        return scan
    found: list[tuple[int, int, int]] = []
    position = entry
    while position < PAGE and not scan.boundaries >> position & 1:
        position = decode(code + after, position, position + 1, 0, found, bits)
    end = min(position, PAGE)
    hole = (1 << end) - (1 << entry)
    boundaries = scan.boundaries & ~hole | sum(1 << offset for offset, _, _ in found)
    sites = [site for site in scan.sites if not entry <= site.offset < end]
    sites += [Found(*one) for one in found if one[2] in REPORTED]
    overflow = scan.overflow if position < PAGE else min(position - PAGE, LONGEST)
    return PageScan(tuple(sorted(sites)), boundaries, overflow)


def likely_starts(before: bytes, whole: bytes, bits: int = 64) -> list[int]:
    """Offsets from 0 to LONGEST - 1, those first at which decoding from within `before` most likely enters the page.

    Decoding that began early has had more time to fall into step, so it counts for more.
    """
    votes = [0] * (LONGEST + 1)
    data = before + whole[: 2 * LONGEST]
    for begin in range(len(before)):
        found: list[tuple[int, int, int]] = []
        start = decode(data, begin, len(before), 0, found, bits) - len(before)
        votes[min(start, LONGEST)] += len(before) - begin
    return sorted(range(LONGEST), key=lambda start: (-votes[start], start))


def own_targets(whole: bytes, scan: PageScan, part: int = -1) -> int:
    """Mask of the page's offsets to which its own direct branches lead; `whole` is the page with what follows it.

    Of the instructions only those in `part`, a mask of offsets, are looked at.
    """
    boundaries = scan.boundaries
    if part >= 0:  # one more tells where the last one ends
        last = (boundaries & part).bit_length()
        later = boundaries >> last
        boundaries = boundaries & part | (later & -later) << last
    begins = np.append(offsets_of(boundaries), PAGE + scan.overflow)
    leads = branch_targets(np.frombuffer(whole, np.uint8), begins[begins <= len(whole)])
    flags = np.zeros(PAGE, bool)
    flags[leads[(leads >= 0) & (leads < PAGE)]] = True
    return mask_of(flags)


def branch_targets(code: NDArray[np.uint8], begins: NDArray[np.intp]) -> NDArray[np.int64]:
    """Offsets to which direct near branches lead, relative to `code`'s start; they may lie outside it, and repeat.

    `begins` are the offsets at which instructions begin, ascending; the end of one is the begin of the next.
    """
    return targets_of(code, begins[:-1], begins[1:])


def targets_of(code: NDArray[np.uint8], begins: NDArray[np.intp], ends: NDArray[np.intp]) -> NDArray[np.int64]:
    """As `branch_targets`, of instructions that begin at `begins` and end at `ends`."""
    if not len(begins):
        return np.empty(0, np.int64)
    may = np.flatnonzero(MAY_BRANCH[code[begins]])
    begins, end = begins[may], ends[may]
    last = len(code) - 1
    may = ~_IS_PREFIX[code[begins]] | MAY_BRANCH[code[np.minimum(begins + 1, last)]]
    operation, end = begins[may], end[may]
    for _ in range(3):
        prefixed = _IS_PREFIX[code[operation]] & (operation + 1 < end)
        if not prefixed.any():
            break
        operation = operation + prefixed
    opcode = code[operation]
    second = code[np.minimum(operation + 1, last)]
    rest = end - operation
    short = _IS_SHORT[opcode] & (rest == 2)
    near = ((opcode == 0xE8) | (opcode == 0xE9)) & (rest == 5)
    near |= (opcode == 0x0F) & ((second & 0xF0) == 0x80) & (rest == 6)
    targets = [end[short] + code[end[short] - 1].astype(np.int8)]
    if len(code) >= 4:
        words = np.ndarray((len(code) - 3,), "<i4", np.ascontiguousarray(code), strides=(1,))
        targets.append(end[near] + words[end[near] - 4])
    return np.concatenate(targets)


_IS_PREFIX: Final = np.array([byte in _PREFIXES for byte in range(256)])
_IS_SHORT: Final = np.array([byte == 0xEB or 0x70 <= byte < 0x80 or 0xE0 <= byte < 0xE4 for byte in range(256)])
MAY_BRANCH: Final = _IS_PREFIX | _IS_SHORT
MAY_BRANCH[[0x0F, 0xE8, 0xE9]] = True
"""By the first byte: whether it may be that of a direct near branch."""
