"""`scan`: every sensitive instruction of an image, with where it stands and how sure that is.

Room: `bt`, the second stage of the house: image -> scan -> plan -> rewrite. Knows nothing of tactics, and no
instruction set: the sweep is the instruction set's own, and what is said of a site here follows from its marks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple, overload

import numpy as np

from bt import textmap
from bt.tactics.registry import tactics_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image import Image
    from bt.image.symbols import Symbols
    from bt.pagecache import PageCache
    from bt.textmap import Stretch
    from emulator.isa.sensitive import SensitiveInstruction

NEAR: Final = 64
"""Where no symbol says how far a function goes: bytes around a site in which what is no instruction casts doubt."""


class Confidence(Enum):
    """How sure it is that a site is an instruction that runs."""

    CERTAIN = "certain"
    """Decoding reaches it in step from a place that is known to be an instruction, over instructions only."""
    LIKELY = "likely"
    """Everything near it decodes, but nothing says where an instruction begins."""
    DATA = "data?"
    """What is no instruction stands near it, or between it and the last place that is known to be one."""


@dataclass(frozen=True, slots=True)
class Site:
    """One sensitive instruction."""

    address: int
    """Guest-virtual, as linked."""
    length: int
    """Bytes."""
    code: int
    """Its encoding, as `Found.code`."""
    row: SensitiveInstruction
    """Its row of the table."""
    bytes: bytes
    section: str
    """"" where the image has no sections."""
    symbol: str
    """`symbol+0x12`, or the address where no symbol is known."""
    file_offset: int
    """Of its first byte in the (uncompressed) image."""
    confidence: Confidence
    reason: str
    """Why so sure, or not, as a clause."""
    state: str = ""
    """The instruction-set state it is of ("a32", "t32"), where the instruction set has several."""

    @property
    def doubtful(self) -> bool:
        """It may be data."""
        return self.confidence is Confidence.DATA


def scan(image: Image, cache: PageCache | None = None) -> Sites:
    """The sensitive instructions of an image's executable ranges, by ascending address."""
    found = textmap.of(image, cache)
    return Sites(image, [part for stretch in found.stretches if (part := _judge(image, stretch)) is not None])


class Sites(Sequence[Site]):
    """Sites by ascending address. There may be tens of thousands: each is made when it is asked for."""

    def __init__(self, image: Image, parts: Sequence[_Columns]) -> None:
        self._image = image
        self._plain: memoryview | None = None if image.raw else image.elf
        self._row_of = tactics_of(image.isa.name, image.byte_order).row_of
        self._columns = _Columns(*(np.concatenate(column) for column in zip(_NONE, *parts, strict=True)))

    @property
    def addresses(self) -> NDArray[np.uint64]:
        """Guest-virtual."""
        return self._columns.address

    def __len__(self) -> int:
        return len(self._columns.address)

    @overload
    def __getitem__(self, index: int) -> Site: ...
    @overload
    def __getitem__(self, index: slice) -> list[Site]: ...
    def __getitem__(self, index: int | slice) -> Site | list[Site]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        return self._made(*(column[index].item() for column in self._columns))

    def __iter__(self) -> Iterator[Site]:
        return map(self._made, *(column.tolist() for column in self._columns))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def _symbols(self) -> Symbols:
        return self._image.symbols

    @cached_property
    def _states(self) -> dict[int, str]:
        """The state of each encoding that was asked for."""
        return {}

    def _made(
        self, address: int, length: int, code: int, file_offset: int, section: int, symbol: int, kind: int, other: int
    ) -> Site:
        image = self._image
        row = self._row_of(code)
        state = self._states.get(code)
        if state is None:
            state = self._states[code] = str(getattr(row.match, "state", ""))
        name, text = "", f"{address:#x}"
        if symbol >= 0:
            start, _, name = self._symbols[symbol]
            text = f"{name}+{address - start:#x}" if address != start else name
        confidence, words = _KINDS[kind]
        return Site(
            address=address,
            length=length,
            code=code,
            row=row,
            bytes=bytes(
                self._plain[file_offset : file_offset + length]
                if self._plain is not None
                else image.view(address, length)
            ),
            section=image.sections[section].name if section >= 0 else "",
            symbol=text,
            file_offset=file_offset,
            confidence=confidence,
            reason=words(other, name),
            state=state,
        )


class _Columns(NamedTuple):
    """What a site is made of, one row a site."""

    address: NDArray[np.uint64]
    length: NDArray[np.int64]
    code: NDArray[np.int64]
    file_offset: NDArray[np.int64]
    section: NDArray[np.int32]
    """Index into the image's sections, or -1."""
    symbol: NDArray[np.int64]
    """Index into the image's symbols, or -1."""
    kind: NDArray[np.uint8]
    """Index into `_KINDS`: how sure it is, and why."""
    other: NDArray[np.uint64]
    """Guest-virtual address that the reason names."""


_NONE: Final = _Columns(
    *(np.empty(0, kind) for kind in ("u8", "i8", "i8", "i8", "i4", "i8", "u1", "u8")),
)
_KINDS: Final[tuple[tuple[Confidence, Callable[[int, str], str]], ...]] = (
    (
        Confidence.LIKELY,
        lambda _at, _name: "all near it is instructions, but no symbol or branch says where one begins",
    ),
    (Confidence.CERTAIN, lambda _at, _name: "a branch or pointer leads to it"),
    (
        Confidence.CERTAIN,
        lambda at, _name: f"a branch or pointer leads to {at:#x}, and decoding from there to it",
    ),
    (
        Confidence.CERTAIN,
        lambda _at, name: f"decoding comes to it from the start of {name}, over instructions only",
    ),
    (Confidence.CERTAIN, lambda _at, name: f"it is the first instruction of {name}"),
    (Confidence.DATA, lambda at, _name: f"what is no instruction stands at {at:#x}, in the same function"),
    (Confidence.LIKELY, lambda at, _name: f"a branch or pointer leads to {at:#x}, but there is data before"),
    (Confidence.DATA, lambda at, _name: f"what is no instruction stands at {at:#x}, before it"),
)
_ALONE, _LED, _LED_NEAR, _INSIDE, _FIRST, _AMONG, _LED_BEHIND, _BEHIND = range(len(_KINDS))


def _judge(image: Image, stretch: Stretch) -> _Columns | None:
    """The sites of one stretch, those in no segment left out."""
    offsets, lengths, codes = np.ascontiguousarray(stretch.sites.T)
    start = np.uint64(stretch.start)
    addresses = offsets.view(np.uint64) + start
    files = np.full(len(addresses), -1, np.int64)
    for segment in reversed(image.segments):  # of two that overlap the first counts
        low, high = _span(addresses, segment.vaddr, segment.memory_size)
        files[low:high] = (addresses[low:high] - np.uint64(segment.vaddr)).astype(np.int64) + segment.file_offset
    kept = files >= 0
    if not kept.all():
        offsets, lengths, codes, addresses, files = (
            column[kept] for column in (offsets, lengths, codes, addresses, files)
        )
    if not len(offsets):
        return None
    sections = np.full(len(addresses), -1, np.int32)
    inside = [(s.vaddr, s.size, number) for number, s in enumerate(image.sections) if s.flags & 4 and s.size]
    for vaddr, size, number in sorted(inside, key=lambda one: one[0], reverse=True):
        low, high = _span(addresses, vaddr, size)
        sections[low:high] = number
    symbols, begins, ends = image.symbols.locate(addresses)
    kinds, others = _confidence(stretch, offsets, symbols >= 0, begins - start, ends - start)
    return _Columns(addresses, lengths, codes, files, sections, symbols, kinds, others + start)


def _span(addresses: NDArray[np.uint64], start: int, size: int) -> tuple[int, int]:
    """Which of the ascending addresses lie in `size` bytes from `start` on."""
    low = int(np.searchsorted(addresses, np.uint64(start)))
    if not size:
        return low, low
    return low, int(np.searchsorted(addresses, np.uint64(min(start + size, 1 << 64) - 1), side="right"))


def _confidence(
    stretch: Stretch,
    offsets: NDArray[np.int64],
    named: NDArray[np.bool_],
    begins: NDArray[np.uint64],
    ends: NDArray[np.uint64],
) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
    """Which of `_KINDS` each site is of, and the offset that its reason names.

    `begins` and `ends` are those of the function around each site, as offsets in the stretch modulo 2^64, where it is
    `named`. What is no instruction counts from the function's begin to its end, and where no symbol says, a bit around.
    """
    low = np.where(named, begins.view(np.int64), offsets - NEAR)
    high = np.where(named, ends.view(np.int64), offsets + NEAR)
    invalid = np.append(stretch.invalid, np.int64(2**63 - 1))
    first, behind = np.searchsorted(invalid, low), np.searchsorted(invalid, offsets, side="right")
    lead = np.full(len(offsets), -1, np.int64)
    asked = np.flatnonzero(~named | (first < behind))
    if len(asked):
        leads = np.flatnonzero(np.unpackbits(stretch.targets & stretch.begins, bitorder="little").view(np.bool_))
        leads = np.concatenate((np.array([-1], np.int64), leads))
        lead[asked] = leads[np.searchsorted(leads, offsets[asked], side="right") - 1]
    last, after = invalid[behind - 1], invalid[first]
    is_led = (lead >= 0) & (lead >= low)
    kinds = np.select(
        [
            (first < behind) & (lead <= last),
            first < behind,
            after < high,
            named & (begins == offsets.view(np.uint64)),
            named,
            is_led & (lead == offsets),
            is_led,
        ],
        [np.uint8(kind) for kind in (_BEHIND, _LED_BEHIND, _AMONG, _FIRST, _INSIDE, _LED, _LED_NEAR)],
        np.uint8(_ALONE),
    )
    others = np.select(
        [kinds == _BEHIND, (kinds == _LED_BEHIND) | (kinds == _LED_NEAR), kinds == _AMONG], [last, lead, after], 0
    )
    return kinds.astype(np.uint8), others.view(np.uint64)
