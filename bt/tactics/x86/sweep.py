"""One linear sweep over an x86 image's code: boundaries, branch targets, sensitive instructions, undecodable bytes.

Room: `bt/tactics/x86`. Fill between functions is skipped without decoding it; everything else is decoded once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np
from iced_x86 import Code

from bt.tactics.x86.chain import Chain
from bt.textmap import Stretch, mark, mark_common, packed, pieces

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image import Image

_FILL: Final = b"\xcc" * 16
_CHUNK: Final = 1 << 20
_RUN: Final = re.compile(rb"\xcc+")


def sweep(image: Image, bits: int) -> tuple[Stretch, ...]:
    """The stretches of an image in 64-bit or 32-bit mode."""
    stretches = tuple(_sweep_stretch(start, end, parts, bits) for start, end, parts in pieces(image))
    if stretches:
        mark_common(image, stretches)
        for start, end in image.text_ranges:
            code = bytes(image.view(start, end - start))
            for leads in _constants(start, code, stretches, bits):
                mark(stretches, leads, taken=False)
    return stretches


def _sweep_stretch(start: int, end: int, parts: list[tuple[int, bytes]], bits: int) -> Stretch:
    begins = np.zeros(end - start, bool)
    targets = np.zeros(end - start, bool)
    sites: list[tuple[int, int, int]] = []
    invalid: list[int] = []
    for address, data in parts:
        base = address - start
        fills = list(_fills(data))
        chain = Chain(data, bits)
        chain.sweep(zip([0, *(high for _, high in fills)], [*(low for low, _ in fills), len(data)], strict=True))
        for at, length, code in chain.noted():
            if code == Code.INVALID:
                invalid.append(base + at)
            else:
                sites.append((base + at, length, code))
        part = begins[base : base + len(data)]
        part[:] = chain.begins
        leads = chain.targets() + base
        targets[leads[(leads >= 0) & (leads < end - start)]] = True
        for low, high in fills:
            part[low:high] = True
    return Stretch(
        start,
        packed(begins),
        packed(targets),
        np.zeros((end - start) // 8, np.uint8),
        np.array(sites, np.int64).reshape(-1, 3),
        np.array(invalid, np.int64),
    )


def _fills(data: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of long runs of INT3."""
    at = data.find(_FILL)
    while at >= 0:
        run = _RUN.match(data, at)
        assert run is not None
        yield run.span()
        at = data.find(_FILL, run.end())


def _constants(
    start: int, code: bytes, stretches: tuple[Stretch, ...], bits: int
) -> Iterator[tuple[NDArray[np.uint64], ...]]:
    """Addresses that instructions of `code` may hold: as 32-bit constants, or as LEA of a RIP-relative operand.

    Every four bytes count as a constant, every 8D as an LEA: a lead too many costs a fixup, one too few a guest.
    """
    for at in range(0, len(code) - 5 if len(code) >= 8 else 0, _CHUNK):
        yield _constants_of(start + at, code[at : at + _CHUNK + 5], stretches, bits)


def _constants_of(start: int, code: bytes, stretches: tuple[Stretch, ...], bits: int) -> tuple[NDArray[np.uint64], ...]:
    """Those of one piece; five bytes that follow it belong to it, too."""
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
