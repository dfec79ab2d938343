"""One linear sweep over an x86 image's code: boundaries, branch targets, sensitive instructions, undecodable bytes.

Room: `bt/tactics/x86`. Fill between functions is skipped without decoding it; everything else is decoded once.
"""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Final

import numpy as np
from iced_x86 import Code, Decoder

from bt.pagescan import Found
from bt.tactics.x86.pagescan import LONGEST, branch_targets
from bt.textmap import Stretch, mark, mark_common, packed, pieces
from emulator.isa.x86.decode import REPORTED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image import Image

_CODE: Final = operator.attrgetter("code")
_FILL: Final = re.compile(rb"\xcc{16,}")
_CHUNK: Final = 1 << 16
_IS_REPORTED: Final = np.zeros(1 << 13, bool)
_IS_REPORTED[[*REPORTED, int(Code.INVALID)]] = True


def sweep(image: Image, bits: int) -> tuple[Stretch, ...]:
    """The stretches of an image in 64-bit or 32-bit mode."""
    stretches = tuple(_sweep_stretch(start, end, parts, bits) for start, end, parts in pieces(image))
    if stretches:
        mark_common(image, stretches)
        for start, end in image.text_ranges:
            code = bytes(image.view(start, end - start))
            mark(stretches, _constants(start, code, stretches, bits), taken=False)
    return stretches


def _sweep_stretch(start: int, end: int, parts: list[tuple[int, bytes]], bits: int) -> Stretch:
    begins = np.zeros(end - start, bool)
    targets = np.zeros(end - start, bool)
    sites: list[tuple[int, int, int]] = []
    invalid: list[int] = []
    for address, data in parts:
        base = address - start
        part = begins[base : base + len(data)]
        position = 0
        for run in [*_FILL.finditer(data), None]:
            limit = run.start() if run else len(data)
            for at, length, code in _sweep_part(data, position, limit, part, bits):
                if code == Code.INVALID:
                    invalid.append(base + at)
                else:
                    sites.append((base + at, length, code))
            if run:
                part[run.start() : run.end()] = True
                position = run.end()
        places = np.append(np.flatnonzero(part), len(data))
        leads = branch_targets(np.frombuffer(data, np.uint8), places) + base
        targets[leads[(leads >= 0) & (leads < end - start)]] = True
    return Stretch(
        start,
        packed(begins),
        packed(targets),
        packed(np.zeros_like(begins)),
        np.array(sites, np.int64).reshape(-1, 3),
        np.array(invalid, np.int64),
    )


def _sweep_part(data: bytes, start: int, end: int, begins: NDArray[np.bool_], bits: int) -> list[Found]:
    """Sweep [start, end) of `data`, mark where instructions begin, return the sensitive and invalid ones."""
    sites: list[Found] = []
    while start < end:
        chunk = data[start : min(start + _CHUNK, end)]
        instructions = list(Decoder(bits, chunk, ip=0))
        lengths = np.fromiter(map(len, instructions), np.int64, len(instructions))
        codes = np.fromiter(map(_CODE, instructions), np.int64, len(instructions))
        count = len(instructions)
        if start + len(chunk) < end:  # the last ones may have been cut
            while count > 1 and int(lengths[:count].sum()) > len(chunk) - LONGEST:
                count -= 1
        offsets = np.cumsum(lengths[:count]) - lengths[:count] + start
        begins[offsets] = True
        sites += [
            Found(int(offsets[i]), int(lengths[i]), int(codes[i])) for i in np.flatnonzero(_IS_REPORTED[codes[:count]])
        ]
        start = int(offsets[-1] + lengths[count - 1])
    return sites


def _constants(start: int, code: bytes, stretches: tuple[Stretch, ...], bits: int) -> tuple[NDArray[np.uint64], ...]:
    """Addresses that instructions of `code` may hold: as 32-bit constants, or as LEA of a RIP-relative operand.

    Every four bytes count as a constant, every 8D as an LEA: a lead too many costs a fixup, one too few a guest.
    """
    if len(code) < 8:
        return ()
    words = np.ndarray((len(code) - 3,), "<u4", code, strides=(1,))
    low, high = min(stretch.start for stretch in stretches), max(stretch.end for stretch in stretches)
    upper = low & ~0xFFFF_FFFF
    found = words[(words >= np.uint32(low - upper)) & (words < np.uint32(min(high - upper, 0xFFFF_FFFF)))]
    if bits == 32:  # there are no operands relative to EIP
        return (found.astype(np.uint64),)
    octets = np.frombuffer(code, np.uint8)
    at = np.flatnonzero(octets[:-5] == 0x8D)
    at = at[octets[at + 1] & 0xC7 == 0x05]
    far = words[at + 2].view(np.int32).astype(np.int64).view(np.uint64)
    ends = np.uint64(start) + at.astype(np.uint64) + np.uint64(6)
    return found.astype(np.uint64) + np.uint64(upper), ends + far
