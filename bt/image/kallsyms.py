"""The symbol table that a Linux kernel carries for itself, found by its structure in a stripped image.

Room: `bt/image`. Layout as scripts/kallsyms.c writes it: names are lengths followed by bytes that each stand for a
token; markers give every 256th name's position; 256 tokens are NUL-terminated, behind a table of their positions.
Addresses are 32-bit offsets before the names (up to Linux 6.3) or behind the tokens (since 6.4). Nothing is trusted:
a candidate is a table only when all parts agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ALIGN = 8
_BLOCK = 256
"""Names between two markers."""
_LONGEST_TOKEN = 128
_LONGEST_NAME = 1024
_SYMBOLS_LIMIT = 1 << 22
_CANDIDATES = 16
_SEPARATOR, _NOTHING = 256, 257  # codes beyond the 256 tokens


@dataclass(frozen=True, slots=True)
class Kallsyms:
    """Symbols in ascending order of address."""

    addresses: NDArray[np.uint64]
    types: str
    """One letter a symbol, as nm prints it."""
    names: list[str]


@dataclass(frozen=True, slots=True)
class _Tokens:
    start: int
    """Where the token table begins in the region."""
    end: int
    """Where the table of positions ends."""
    text: NDArray[np.uint8]
    """All tokens' characters, NULs included."""
    positions: NDArray[np.int64]
    lengths: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Names:
    start: int
    """Where the first name begins; the number of symbols stands eight bytes before."""
    count: int
    entries: NDArray[np.int64]
    """Position of each name's length byte, from `start`."""
    codes: NDArray[np.int64]
    """All names' bytes, with separators in place of the lengths."""


def find(regions: Sequence[memoryview]) -> Kallsyms | None:
    """Search read-only data, each region beginning at a multiple of 8; None where no whole table is found."""
    for region in regions:
        for tokens in _find_tokens(region):
            names = _find_names(region, tokens.start)
            if names is None:
                continue
            addresses = _find_addresses(region, names, tokens)
            if addresses is None:
                continue
            types, texts = _expand(names, tokens)
            return Kallsyms(addresses, types, texts)
    return None


def _array(region: memoryview, start: int, count: int, kind: str) -> NDArray[np.int64] | None:
    """`count` little-endian numbers at `start`, or None outside the region."""
    size = count * np.dtype(kind).itemsize
    if start < 0 or count < 0 or start + size > len(region):
        return None
    return np.frombuffer(region[start : start + size], kind).astype(np.int64)


def _align(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _find_tokens(region: memoryview) -> Iterator[_Tokens]:
    """Every place where 256 ascending 16-bit positions describe the strings that stand before them."""
    words = np.frombuffer(region[: len(region) & ~7], "<u2").reshape(-1, 4)
    if len(words) < 64:
        return
    first = words[: len(words) - 63]
    likely = (first[:, 0] == 0) & (first[:, 1] >= 2) & (first[:, 1] <= _LONGEST_TOKEN)
    likely &= (first[:, 2] > first[:, 1]) & (first[:, 3] > first[:, 2])
    for row in np.flatnonzero(likely).tolist():
        positions = words[row : row + 64].reshape(-1).astype(np.int64)
        steps = np.diff(positions)
        if steps.min() < 2 or steps.max() > _LONGEST_TOKEN:
            continue
        tokens = _match_tokens(region, row * 8, positions)
        if tokens is not None:
            yield tokens


def _match_tokens(region: memoryview, index_at: int, positions: NDArray[np.int64]) -> _Tokens | None:
    last = int(positions[-1])
    highest = (index_at - last - 2) // _ALIGN * _ALIGN
    for start in range(highest, max(highest - _LONGEST_TOKEN - 16, -1), -_ALIGN):
        text = np.frombuffer(region[start:index_at], np.uint8)
        ends = np.flatnonzero(text == 0)[:256]
        if len(ends) < 256 or not np.array_equal(ends[:-1] + 1, positions[1:]):
            continue
        if _align(int(ends[-1]) + 1) == len(text) and not text[int(ends[-1]) :].any():
            return _Tokens(start, index_at + 512, text, positions, ends - positions)
    return None


def _find_names(region: memoryview, tokens_at: int) -> _Names | None:
    """The longest ascending run of markers that has its names before it and the tokens behind it."""
    words = np.frombuffer(region[: tokens_at & ~7], "<u4").astype(np.int64)
    steps = np.diff(words)
    breaks = np.append(np.flatnonzero((steps < 2 * _BLOCK) | (steps > _BLOCK * _LONGEST_TOKEN)), len(words) - 1)
    starts = np.flatnonzero(words[::2] == 0) * 2
    counts = breaks[np.searchsorted(breaks, starts)] - starts + 1
    longest = np.argsort(-counts, kind="stable")[:_CANDIDATES]
    for start, count in zip(starts[longest].tolist(), counts[longest].tolist(), strict=True):
        if count < 2:
            continue
        names = _match_names(region, start * 4, words[start : start + count])
        if names is None:
            continue
        end = _align((start + count) * 4)
        # Since 6.2, and in later 6.1.y, a table of three bytes a symbol (the order by name) stands between.
        if tokens_at in (end, end + _align(3 * names.count)):
            return names
    return None


def _match_names(region: memoryview, markers_at: int, markers: NDArray[np.int64]) -> _Names | None:
    """Where the names begin: a count stands before them, and their lengths lead from marker to marker."""
    latest = (markers_at - int(markers[-1])) // _ALIGN * _ALIGN
    earliest = max(latest - _BLOCK * _LONGEST_TOKEN, _ALIGN)
    if latest < earliest:
        return None
    slots = _array(region, earliest - _ALIGN, (latest - earliest) // _ALIGN + 1, "<u8")
    if slots is None:
        return None
    fits = ((slots + _BLOCK - 1) // _BLOCK == len(markers)) & (slots > 0) & (slots <= _SYMBOLS_LIMIT)
    for slot in np.flatnonzero(fits).tolist()[::-1]:
        start = earliest + slot * _ALIGN
        names = _walk_names(region[start:markers_at], start, int(slots[slot]), markers)
        if names is not None:
            return names
    return None


def _walk_names(data: memoryview, start: int, count: int, markers: NDArray[np.int64]) -> _Names | None:
    """Follow the lengths of all blocks at once; None unless each block ends where the next begins."""
    raw = np.frombuffer(data, np.uint8).astype(np.int64)
    last = len(raw) - 2
    if last < 0:
        return None
    at = markers.copy()
    entries = np.zeros((_BLOCK, len(markers)), np.int64)
    long_entries = np.zeros((_BLOCK, len(markers)), bool)
    tail = count - (len(markers) - 1) * _BLOCK
    for step in range(_BLOCK):
        active = at if step < tail else at[:-1]
        if not len(active):
            break
        if int(active.max()) > last:
            return None
        length = raw[active]
        long = length >= 128  # two bytes, seven bits each, since Linux 6.1
        length = np.where(long, (length & 127) | raw[active + 1] << 7, length)
        if int(length.min()) < 1 or int(length.max()) > _LONGEST_NAME:
            return None
        entries[step, : len(active)] = active
        long_entries[step, : len(active)] = long
        active += length + 1 + long
    if not np.array_equal(at[:-1], markers[1:]) or not len(raw) - _ALIGN < at[-1] <= len(raw) or raw[at[-1] :].any():
        return None
    ordered = entries.T.reshape(-1)[:count]
    raw[ordered] = _SEPARATOR
    raw[ordered[long_entries.T.reshape(-1)[:count]] + 1] = _NOTHING
    return _Names(start, count, ordered, raw[: int(at[-1])])


def _find_addresses(region: memoryview, names: _Names, tokens: _Tokens) -> NDArray[np.uint64] | None:
    """Offsets and the base they count from: before the number of symbols, or behind the tokens."""
    size = _align(names.count * 4)
    before = names.start - 2 * _ALIGN
    for offsets_at, base_at in ((before - size, before), (tokens.end, tokens.end + size)):
        offsets = _array(region, offsets_at, names.count, "<i4")
        base = _array(region, base_at, 1, "<u8")
        if offsets is None or base is None or int(base[0]) >= 0:
            continue  # a kernel lives in the upper half of the address space
        kernel = base.view(np.uint64)[0]
        # Absolute values (per-CPU symbols) are positive, others the complement of their distance from the base.
        mixed = np.where(offsets >= 0, offsets.view(np.uint64), kernel + (-1 - offsets).astype(np.uint64))
        plain = kernel + (offsets & 0xFFFF_FFFF).astype(np.uint64)
        for addresses in (mixed, plain):
            if (offsets < 0).any() == (addresses is mixed) and (addresses[1:] >= addresses[:-1]).all():
                return addresses
    return None


def _expand(names: _Names, tokens: _Tokens) -> tuple[str, list[str]]:
    """Types and names: every code replaced by its token's characters."""
    # A NUL for the separator stands behind the tokens' text, the code for nothing has length 0.
    text = np.append(tokens.text, np.uint8(0))
    starts = np.concatenate([tokens.positions, [len(text) - 1, 0]]).astype(np.int32)
    lengths = np.concatenate([tokens.lengths, [1, 0]]).astype(np.int32)
    sizes = lengths[names.codes]
    ends = np.cumsum(sizes, dtype=np.int32)
    index = np.repeat(starts[names.codes] - (ends - sizes), sizes)
    index += np.arange(len(index), dtype=np.int32)
    expanded = text[index]
    type_at = ends[names.entries]  # the separator's end: the type letter comes first
    types = expanded[type_at].tobytes().decode("latin-1")
    expanded[type_at] = 0
    return types, expanded.tobytes()[2:].decode("utf-8", "replace").split("\0\0")
