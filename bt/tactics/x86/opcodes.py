"""Which instructions may be sensitive, by their opcode bytes alone: a sieve before decoding.

Room: `bt/tactics/x86`. The tables are made from the encodings of the sensitive-instruction table, so the sieve lets
every one of them pass; of what passes, decoding tells which are.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from iced_x86 import EncodingKind, OpCodeInfo, OpCodeTableKind

from emulator.isa.x86.decode import REPORTED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Places = NDArray[np.int32]

_PREFIXES: Final = (0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3)
_REX: Final = range(0x40, 0x50)
_ESCAPE: Final = 0x0F
_MOST_PREFIXES: Final = 4
"""Prefixes that are looked behind; of an instruction with more it is not told what it is."""
_MAPS: Final = {
    OpCodeTableKind.NORMAL: 0,
    OpCodeTableKind.T0F: 1,
    OpCodeTableKind.T0F38: 2,
    OpCodeTableKind.T0F3A: 3,
}


class Sieve(NamedTuple):
    """Tables by a byte's value."""

    prefix: NDArray[np.bool_]
    first: NDArray[np.bool_]
    """First bytes of an instruction that may pass: a prefix, an escape, or an opcode."""
    groups: Bytes
    """By map and opcode: the mask of `reg` fields of the byte behind it with which it may be sensitive."""


@cache
def sieve(bits: int) -> Sieve:
    """The sieve of a mode. Raises ValueError for a table with an encoding that it cannot tell by legacy opcodes."""
    groups = np.zeros((4, 256), np.uint8)
    for code in REPORTED:
        info = OpCodeInfo(code)  # type: ignore[arg-type]
        if info.encoding != EncodingKind.LEGACY or info.table not in _MAPS:
            raise ValueError(f"{info.instruction_string} is no legacy encoding, by whose opcode it could be found")
        opcode = info.op_code >> 8 * (info.op_code_len - 1)
        alone = info.op_code_len == 1 and info.group_index >= 0
        groups[_MAPS[info.table], opcode] |= 1 << info.group_index if alone else 0xFF
    prefix = np.zeros(256, bool)
    prefix[[*_PREFIXES, *(_REX if bits == 64 else ())]] = True
    first = prefix | (groups[0] != 0)
    first[_ESCAPE] = True
    return Sieve(prefix, first, groups)


def candidates(code: Bytes, begins: Places, bits: int) -> Places:
    """Those of the offsets at which instructions begin where one may be sensitive, ascending."""
    prefix, first, groups = sieve(bits)
    may = begins[first[code[begins]]]
    last = len(code) - 1
    at = may
    for _ in range(_MOST_PREFIXES):
        more = prefix[code[at]]
        if not more.any():
            break
        at = np.minimum(at + more, last)
    opcode, second = code[at], code[np.minimum(at + 1, last)]
    escaped = opcode == _ESCAPE
    allowed = groups[0][opcode]
    allowed[escaped] = groups[1][second[escaped]]
    field = np.where(escaped, code[np.minimum(at + 2, last)], second)
    passes = allowed >> (field >> 3 & 7) & 1 | prefix[opcode]
    for number, escape in ((2, 0x38), (3, 0x3A)):
        long = escaped & (second == escape)
        passes[long] = groups[number][field[long]] != 0
    result: Places = may[passes != 0]
    return result
