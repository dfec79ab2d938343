"""The symbol table that a Linux kernel carries for itself, found by its structure in a stripped image.

Room: `bt/image`. Layout as scripts/kallsyms.c writes it: names are lengths followed by bytes that each stand for a
token; markers give every 256th name's position; 256 tokens are NUL-terminated, behind a table of their positions.
Addresses are 32-bit offsets, or on some 32-bit machines addresses, before the names (up to Linux 6.3) or behind the
tokens (since 6.4). Parts are aligned to a pointer. Nothing is trusted: only where all parts agree there is a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
    _expand: Callable[[], list[str]]

    @property
    def names(self) -> list[str]:
        """Made anew when asked for: it takes as long as all the rest."""
        return self._expand()


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
    """Where the first name begins; the number of symbols stands a pointer's size before."""
    count: int
    entries: NDArray[np.int64]
    """Position of each name's length byte, from `start`."""
    codes: NDArray[np.uint16]
    """All names' bytes, with separators in place of the lengths."""


@dataclass(frozen=True, slots=True)
class _Region:
    """Read-only data in which a table may lie, and how its machine writes numbers."""

    data: memoryview
    align: int
    """Bytes of a pointer."""
    order: str
    """"<" or ">"."""

    def array(self, start: int, count: int, kind: str) -> NDArray[np.int64] | None:
        """`count` numbers at `start`, or None outside the region."""
        size = count * np.dtype(kind).itemsize
        if start < 0 or count < 0 or start + size > len(self.data):
            return None
        return np.frombuffer(self.data[start : start + size], self.order + kind).astype(np.int64)

    def aligned(self, size: int) -> int:
        """`size` rounded up."""
        return -(-size // self.align) * self.align


def find(regions: Sequence[memoryview], bits: int = 64, byte_order: str = "little") -> Kallsyms | None:
    """Search read-only data, each region beginning at a multiple of 8; None where no whole table is found."""
    for data in regions:
        region = _Region(data, bits // 8, ">" if byte_order == "big" else "<")
        for tokens in _find_tokens(region):
            names = _find_names(region, tokens.start)
            if names is None:
                continue
            addresses = _find_addresses(region, names, tokens)
            if addresses is None:
                continue
            return Kallsyms(addresses, _types(names, tokens), partial(_texts, names, tokens))
    return None


def _find_tokens(region: _Region) -> Iterator[_Tokens]:
    """Every place where 256 ascending 16-bit positions describe the strings that stand before them."""
    step = region.align // 2
    words = np.frombuffer(region.data[: len(region.data) & -region.align], region.order + "u2")
    last = len(words) - _BLOCK
    if last < 0:
        return
    first, second, third, fourth = (words[at : last + at + 1 : step] for at in range(4))
    likely = np.flatnonzero((first == 0) & (second - np.uint16(2) <= np.uint16(_LONGEST_TOKEN - 2)))
    likely = likely[(third[likely] > second[likely]) & (fourth[likely] > third[likely])]
    for row in likely.tolist():
        positions = words[row * step : row * step + _BLOCK].astype(np.int64)
        steps = np.diff(positions)
        if steps.min() < 2 or steps.max() > _LONGEST_TOKEN:
            continue
        tokens = _match_tokens(region, row * region.align, positions)
        if tokens is not None:
            yield tokens


def _match_tokens(region: _Region, index_at: int, positions: NDArray[np.int64]) -> _Tokens | None:
    last = int(positions[-1])
    highest = (index_at - last - 2) // region.align * region.align
    for start in range(highest, max(highest - _LONGEST_TOKEN - 16, -1), -region.align):
        text = np.frombuffer(region.data[start:index_at], np.uint8)
        ends = np.flatnonzero(text == 0)[:256]
        if len(ends) < 256 or not np.array_equal(ends[:-1] + 1, positions[1:]):
            continue
        if region.aligned(int(ends[-1]) + 1) == len(text) and not text[int(ends[-1]) :].any():
            return _Tokens(start, index_at + 512, text, positions, ends - positions)
    return None


def _find_names(region: _Region, tokens_at: int) -> _Names | None:
    """The longest ascending run of markers that has its names before it and the tokens behind it."""
    words = np.frombuffer(region.data[: tokens_at & -region.align], region.order + "u4")
    if len(words) < 2:
        return None
    steps = words[1:] - words[:-1]  # modulo 2^32, beyond the largest step where they do not ascend
    steps -= np.uint32(2 * _BLOCK)
    ascends = np.append(steps <= np.uint32(_BLOCK * _LONGEST_TOKEN - 2 * _BLOCK), np.False_)
    ends = np.flatnonzero(ascends[:-1] & ~ascends[1:]) + 1
    slot = region.align // 4
    starts = np.flatnonzero(ascends[::slot] & (words[::slot] == 0)) * slot
    counts = ends[np.searchsorted(ends, starts, side="right")] - starts + 1
    longest = np.argsort(-counts, kind="stable")[:_CANDIDATES]
    for start, count in zip(starts[longest].tolist(), counts[longest].tolist(), strict=True):
        names = _match_names(region, start * 4, words[start : start + count].astype(np.int64))
        if names is None:
            continue
        end = region.aligned((start + count) * 4)
        # Since 6.2, and in later 6.1.y, a table of three bytes a symbol (the order by name) stands between.
        if tokens_at in (end, end + region.aligned(3 * names.count)):
            return names
    return None


def _match_names(region: _Region, markers_at: int, markers: NDArray[np.int64]) -> _Names | None:
    """Where the names begin: a count stands before them, and their lengths lead from marker to marker."""
    align = region.align
    latest = (markers_at - int(markers[-1])) // align * align
    earliest = max(latest - _BLOCK * _LONGEST_TOKEN, align)
    if latest < earliest:
        return None
    words = region.array(earliest - align, ((latest - earliest) // align + 1) * (align // 4), "u4")
    if words is None:
        return None
    slots = words[:: align // 4]
    fits = ((slots + _BLOCK - 1) // _BLOCK == len(markers)) & (slots > 0) & (slots <= _SYMBOLS_LIMIT)
    for slot in np.flatnonzero(fits).tolist()[::-1]:
        start = earliest + slot * align
        names = _walk_names(region.data[start:markers_at], start, int(slots[slot]), markers, align)
        if names is not None:
            return names
    return None


def _walk_names(data: memoryview, start: int, count: int, markers: NDArray[np.int64], align: int) -> _Names | None:
    """Follow the lengths of all blocks at once; None unless each block ends where the next begins."""
    raw = np.frombuffer(data, np.uint8).astype(np.uint16)
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
    if not np.array_equal(at[:-1], markers[1:]) or not len(raw) - align < at[-1] <= len(raw) or raw[at[-1] :].any():
        return None
    ordered = entries.T.reshape(-1)[:count]
    raw[ordered] = _SEPARATOR
    raw[ordered[long_entries.T.reshape(-1)[:count]] + 1] = _NOTHING
    return _Names(start, count, ordered, raw[: int(at[-1])])


def _find_addresses(region: _Region, names: _Names, tokens: _Tokens) -> NDArray[np.uint64] | None:
    """Offsets and the base they count from, or addresses: before the number of symbols, or behind the tokens."""
    align, count = region.align, names.count
    size = region.aligned(count * 4)
    before = names.start - 2 * align
    for offsets_at, base_at in ((before - size, before), (tokens.end, tokens.end + size)):
        offsets = region.array(offsets_at, count, "i4")
        base = region.array(base_at, 1, f"u{align}")
        if offsets is None or base is None or not int(base[0]) >> 8 * align - 1 & 1:
            continue  # a kernel lives in the upper half of the address space
        kernel = base.view(np.uint64)[0]
        # Absolute values (per-CPU symbols) are positive, others the complement of their distance from the base.
        mixed = np.where(offsets >= 0, offsets.view(np.uint64), kernel + (-1 - offsets).astype(np.uint64))
        plain = kernel + (offsets & 0xFFFF_FFFF).astype(np.uint64)
        for addresses in (mixed, plain):
            fits = int(addresses.max()) >> 8 * align == 0
            if (offsets < 0).any() == (addresses is mixed) and fits and (addresses[1:] >= addresses[:-1]).all():
                return addresses
    return _plain_addresses(region, names, tokens)


def _plain_addresses(region: _Region, names: _Names, tokens: _Tokens) -> NDArray[np.uint64] | None:
    """Whole addresses, as a kernel without CONFIG_KALLSYMS_BASE_RELATIVE has them."""
    size = names.count * region.align
    for start in (names.start - region.align - size, tokens.end):
        addresses = region.array(start, names.count, f"u{region.align}")
        if addresses is None:
            continue
        found = addresses.view(np.uint64)
        if int(found[-1]) >> 8 * region.align - 1 & 1 and (found[1:] >= found[:-1]).all():
            return found
    return None


def _types(names: _Names, tokens: _Tokens) -> str:
    """The first letter of every name, which is its type: that of its first token."""
    first = names.codes[names.entries + 1]
    long = first == _NOTHING
    first[long] = names.codes[names.entries[long] + 2]
    return tokens.text[tokens.positions[first]].tobytes().decode("latin-1")


def _texts(names: _Names, tokens: _Tokens) -> list[str]:
    """The names without their types: every code replaced by its token's characters."""
    # A NUL for the separator stands behind the tokens' text, the code for nothing has length 0.
    text = np.append(tokens.text, np.uint8(0))
    starts = np.concatenate([tokens.positions, [len(text) - 1, 0]]).astype(np.int32)
    lengths = np.concatenate([tokens.lengths, [1, 0]]).astype(np.int32)
    sizes = lengths[names.codes]
    ends = np.cumsum(sizes, dtype=np.int32)
    index = np.repeat(starts[names.codes] - (ends - sizes), sizes)
    index += np.arange(len(index), dtype=np.int32)
    expanded = text[index]
    expanded[ends[names.entries]] = 0  # the separator's end: the type letter comes first
    found: list[str] = expanded.tobytes()[2:].decode("utf-8", "replace").split("\0\0")
    if len(found) == names.count:
        return found
    ends = ends[names.entries]  # some have no name but a type
    behind = np.append(ends[1:] - 1, len(expanded)).tolist()
    return [expanded[at + 1 : end].tobytes().decode("utf-8", "replace") for at, end in zip(ends, behind, strict=True)]
