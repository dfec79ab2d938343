"""How long plain x86 instructions are, at every offset of some code at once: by tables, without decoding.

Room: `bt/tactics/x86`. Plain is what no sensitive row is about and what is valid whatever follows it: nearly all that a
compiler makes of integers. For the rest the length is 0, which means: ask the decoder. Encodings by SDM volume 2,
appendix A; a test compares every entry with iced-x86.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

BEHIND: Final = 16
"""Bytes at the end of the code for which no length is given: an instruction there may be cut."""
_CHUNK: Final = 1 << 17
_SIB: Final = 0x80
"""Flag of a length: a SIB byte follows ModRM, whose base may mean four bytes more."""
_OPERAND_SIZE, _LOCK, _REPEAT = 0x66, 0xF0, 0xF3
_SEGMENTS: Final = (0x2E, 0x3E, 0x65)
_IS_SEGMENT: Final = np.isin(np.arange(256), _SEGMENTS)
_ALL: Final = 0xFF
_MEMORY: Final = 0x100
"""Only with an operand in memory."""


class _Tables(NamedTuple):
    """Lengths by two bytes, the first in the lower half of the index."""

    first: Bytes
    """By opcode and what follows it."""
    second: Bytes
    """Behind 0F: by opcode and what follows it, the 0F counted."""


@cache
def _tables(bits: int, prefix: int = 0) -> _Tables:
    """The tables for instructions behind a prefix, which is not counted; 0 for those without."""
    return _Tables(_table(_first(bits, prefix), 1), _table(_second(prefix), 2))


def _table(forms: dict[int, tuple[int, int, int]], size: int) -> Bytes:
    """`forms`: by opcode immediate bytes, those for /0 and /1 besides, and which /reg are plain (0: no ModRM)."""
    result = np.zeros((256, 256), np.uint8)  # by what follows, and opcode
    follows = np.arange(256)
    mod, field, base = follows >> 6, follows >> 3 & 7, follows & 7
    sib = (base == 4) & (mod != 3)
    size_of = 1 + sib + (mod == 1) + 4 * (mod == 2) + 4 * ((mod == 0) & (base == 5))
    flag = np.where(sib & (mod == 0), _SIB, 0)
    for opcode, (immediate, test, fields) in forms.items():
        if not fields:
            result[:, opcode] = size + immediate
            continue
        plain = (fields >> field & 1 == 1) & ((mod != 3) | (fields & _MEMORY == 0))
        length = size + size_of + immediate + np.where(field < 2, test, 0)
        result[:, opcode] = np.where(plain, length | flag, 0)
    return result.reshape(-1)


def _first(bits: int, prefix: int) -> dict[int, tuple[int, int, int]]:
    """One-byte opcodes. SDM tables A-2 and A-6."""
    if prefix == _REPEAT:
        return dict.fromkeys((0xA4, 0xA5, 0xAA, 0xAB), (0, 0, 0))
    word = 2 if prefix == _OPERAND_SIZE else 4
    forms: dict[int, tuple[int, int, int]] = {}
    for base in range(0, 0x40, 8):
        forms |= {base + form: (0, 0, _ALL) for form in range(4)} | {base + 4: (1, 0, 0), base + 5: (word, 0, 0)}
    if prefix == _LOCK:
        forms = {base + form: (0, 0, _ALL | _MEMORY) for base in range(0, 0x38, 8) for form in range(2)}
        forms |= {opcode: (size, 0, 0x7F | _MEMORY) for opcode, size in ((0x80, 1), (0x81, 4), (0x83, 1))}
        forms |= dict.fromkeys((0x86, 0x87), (0, 0, _ALL | _MEMORY))
        return forms | dict.fromkeys((0xFE, 0xFF), (0, 0, 3 | _MEMORY))
    alone = [*range(0x50, 0x60), *range(0x90, 0x9A), *range(0xA4, 0xA8), *range(0xAA, 0xB0), 0xC9]
    if bits == 32:
        alone += range(0x40, 0x50)
    forms |= dict.fromkeys(alone, (0, 0, 0))
    forms |= {0x68: (word, 0, 0), 0x6A: (1, 0, 0), 0x69: (word, 0, _ALL), 0x6B: (1, 0, _ALL)}
    forms |= {0x80: (1, 0, _ALL), 0x81: (word, 0, _ALL), 0x83: (1, 0, _ALL), 0x8D: (0, 0, _ALL | _MEMORY)}
    forms |= dict.fromkeys(range(0x84, 0x8C), (0, 0, _ALL))
    forms |= {0xA8: (1, 0, 0), 0xA9: (word, 0, 0), 0xC6: (1, 0, 1), 0xC7: (word, 0, 1)}
    forms |= dict.fromkeys(range(0xB0, 0xB8), (1, 0, 0)) | dict.fromkeys(range(0xB8, 0xC0), (word, 0, 0))
    forms |= {0xC0: (1, 0, _ALL), 0xC1: (1, 0, _ALL)} | dict.fromkeys(range(0xD0, 0xD4), (0, 0, _ALL))
    forms |= {0xF6: (0, 1, _ALL), 0xF7: (0, word, _ALL), 0xFE: (0, 0, 3), 0xFF: (0, 0, 0x43)}
    if bits == 64:
        forms[0x63] = 0, 0, _ALL
    if not prefix:
        forms |= dict.fromkeys((*range(0x70, 0x80), 0xEB), (1, 0, 0))
        forms |= {0xE8: (4, 0, 0), 0xE9: (4, 0, 0), 0xC3: (0, 0, 0), 0xC2: (2, 0, 0), 0xCC: (0, 0, 0)}
        forms[0xFF] = 0, 0, 0x57
    return forms


def _second(prefix: int) -> dict[int, tuple[int, int, int]]:
    """Opcodes behind 0F. SDM table A-3."""
    if prefix == _REPEAT:
        return dict.fromkeys((0xB8, 0xBC, 0xBD), (0, 0, _ALL))
    if prefix == _LOCK:
        forms = dict.fromkeys((0xAB, 0xB0, 0xB1, 0xB3, 0xBB, 0xC0, 0xC1), (0, 0, _ALL | _MEMORY))
        return forms | {0xBA: (1, 0, 0xE0 | _MEMORY), 0xC7: (0, 0, 2 | _MEMORY)}
    forms = dict.fromkeys((0x1F, *range(0x40, 0x50), *range(0x90, 0xA0)), (0, 0, _ALL))
    forms |= dict.fromkeys((0xA3, 0xA5, 0xAB, 0xAD, 0xAF, 0xB0, 0xB1, 0xB3), (0, 0, _ALL))
    forms |= dict.fromkeys((0xB6, 0xB7, 0xBB, 0xBC, 0xBD, 0xBE, 0xBF, 0xC0, 0xC1), (0, 0, _ALL))
    forms |= {0xA4: (1, 0, _ALL), 0xAC: (1, 0, _ALL), 0xBA: (1, 0, 0xF0)}
    if not prefix:
        forms |= dict.fromkeys(range(0x80, 0x90), (4, 0, 0)) | dict.fromkeys(range(0xC8, 0xD0), (0, 0, 0))
        forms |= {0x0B: (0, 0, 0), 0x0D: (0, 0, 3 | _MEMORY), 0x18: (0, 0, 0xF | _MEMORY)}
    return forms


def lengths(code: Bytes, bits: int) -> Bytes:
    """The length of the plain instruction that begins at each offset, 0 where there is none."""
    result = np.zeros(len(code), np.uint8)
    for start in range(0, len(code) - BEHIND, _CHUNK):
        end = min(start + _CHUNK, len(code) - BEHIND)
        result[start:end] = _of_chunk(code[start : end + BEHIND], bits)
    return result


def _of_chunk(code: Bytes, bits: int) -> Bytes:
    """The lengths for all but the last BEHIND bytes."""
    pairs = np.ndarray((len(code) - 1,), "<u2", np.ascontiguousarray(code), strides=(1,))
    size = len(code) - BEHIND
    count = size + 2  # what a prefix stands before is looked at as well
    head = code[:count]
    tables = _tables(bits)
    found = tables.first[pairs[:count]]
    escaped = np.flatnonzero(head == 0x0F)
    found[escaped] = tables.second[pairs[escaped + 1]]
    flagged = np.flatnonzero(found >= _SIB)
    found[flagged] = _with_sib(found[flagged], code[flagged + 2 + (code[flagged] == 0x0F)])
    if bits == 64:
        rex = head[:-1] & 0xF0 == 0x40
        behind = found[1:]
        found[:-1] = np.where(rex, behind + (behind != 0), found[:-1])
        wide = np.flatnonzero(rex & (head[:-1] & 8 != 0) & (head[1:] & 0xF8 == 0xB8))
        found[wide] = 10  # mov r64, imm64
    for prefix in (_OPERAND_SIZE, _LOCK, _REPEAT):
        at = np.flatnonzero(head[:-1] == prefix)
        found[at] = _prefixed(code, pairs, at, bits, prefix)
    for prefix in _SEGMENTS:
        at = np.flatnonzero(head[:-1] == prefix)
        length = found[at + 1]
        length[_IS_SEGMENT[code[at + 1]]] = 0
        found[at] = length + (length != 0)
    result: Bytes = found[:size]
    return result


def _with_sib(length: Bytes, sib: Bytes) -> Bytes:
    return np.asarray((length & ~np.uint8(_SIB)) + np.uint8(4) * (sib & 7 == 5), np.uint8)


def _prefixed(code: Bytes, pairs: NDArray[np.uint16], at: NDArray[np.intp], bits: int, prefix: int) -> Bytes:
    """Lengths of the instructions whose prefix is at `at`, and stands first."""
    rex = (code[at + 1] & 0xF0 == 0x40) if bits == 64 else np.zeros(len(at), bool)
    opcode = at + 1 + rex
    tables = _tables(bits, prefix)
    escaped = code[opcode] == 0x0F
    length = np.where(escaped, tables.second[pairs[opcode + 1]], tables.first[pairs[opcode]])
    flagged = length >= _SIB
    length = np.where(flagged, _with_sib(length, code[opcode + 2 + escaped]), length)
    if prefix == _REPEAT:
        length[pairs[at + 1] == 0x1E0F] = 0
        length[(pairs[at + 1] == 0x1E0F) & (code[at + 3] == 0xFA)] = 3  # endbr64
    if prefix == _OPERAND_SIZE:
        length[rex & (code[at + 1] & 8 != 0)] = 0  # REX.W prevails
    plain = length != 0
    return np.asarray(length + (1 + rex) * plain, np.uint8)
