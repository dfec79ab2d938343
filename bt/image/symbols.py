"""`Symbols`: what lies where, by name and by address.

Room: `bt/image`. Read from .symtab where the ELF has one, else from the kernel's kallsyms. A symbol's name is material
for reports and for optional knowledge about a kernel; nothing's correctness rests on it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from bt.image.elf import FORMS, SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE, SHT_NOBITS, SHT_SYMTAB, Section
from emulator.errors import BadImage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image.image import Image

_STT_FUNC, _STT_SECTION, _STT_FILE = 2, 3, 4
_STATE_BIT: Final = {"armv7": 1}
"""Bit of a function's address that tells the state it is of, and is no part of where it lies."""
_MAPPING: Final = ("$a", "$t", "$d", "$x")
"""Names (before a dot) of symbols on ARM that tell what is code, and name nothing (AAELF32 5.5.5)."""
_STB_GLOBAL, _STB_WEAK = 1, 2
_SHN_UNDEF, _SHN_ABS, _SHN_RESERVED = 0, 0xFFF1, 0xFF00


class Symbol(NamedTuple):
    """One name."""

    address: int
    """Guest-virtual address."""
    type: str
    """Letter as nm prints it: t text, d data, r read-only data, b zeroed, a absolute; capital when global."""
    name: str


class Symbols(Sequence[Symbol]):
    """All symbols of an image in ascending order of address."""

    __slots__ = ("_by_name", "_listed", "_made_names", "_make_names", "_ranges", "_types", "addresses", "source")

    def __init__(
        self,
        addresses: NDArray[np.uint64],
        types: str,
        names: Callable[[], list[str]],
        ranges: Sequence[tuple[int, int]],
        source: str,
    ) -> None:
        """`addresses` ascend; `names` gives as many; `ranges` (start, end) are those that belong to the image."""
        self.addresses = addresses
        """Guest-virtual addresses, one a symbol."""
        self._types = types
        self._make_names = names
        self._made_names: list[str] | None = None
        self._listed: list[int] | None = None
        self._ranges = tuple(ranges)
        self._by_name: dict[str, int] | None = None
        self.source = source
        """"symtab", "kallsyms" or "none"."""

    @property
    def types(self) -> str:
        """One letter a symbol."""
        return self._types

    @property
    def _names(self) -> list[str]:
        """Made when the first is asked for: where instructions are does not depend on what they are called."""
        if self._made_names is None:
            self._made_names = self._make_names()
        return self._made_names

    @property
    def _addresses(self) -> list[int]:
        if self._listed is None:
            self._listed = self.addresses.tolist()
        return self._listed

    def __len__(self) -> int:
        return len(self.addresses)

    def __getitem__(self, index: int) -> Symbol:  # type: ignore[override]
        return Symbol(self._addresses[index], self._types[index], self._names[index])

    def __iter__(self) -> Iterator[Symbol]:
        return map(Symbol._make, zip(self._addresses, self._types, self._names, strict=True))

    def find(self, address: int) -> tuple[Symbol, int] | None:
        """The nearest symbol at or before `address` in the same segment, and the distance; of aliases the first."""
        start = next((start for start, end in self._ranges if start <= address < end), None)
        index = bisect_right(self._addresses, address) - 1
        if start is None or index < 0 or self._addresses[index] < start:
            return None
        index = bisect_left(self._addresses, self._addresses[index], 0, index)
        return self[index], address - self._addresses[index]

    def locate(self, places: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64]]:
        """`find` and `end_of` for ascending addresses: index of the symbol or -1, where it begins, where it ends."""
        index = np.full(len(places), -1, np.int64)
        begins, ends = np.zeros(len(places), np.uint64), np.zeros(len(places), np.uint64)
        later = np.searchsorted(self.addresses, places, side="right")
        following = np.append(self.addresses, np.uint64(2**64 - 1))
        for start, end in reversed(self._ranges):  # of two that overlap the first counts
            if start >= end:
                continue
            low = int(np.searchsorted(places, np.uint64(start)))
            high = int(np.searchsorted(places, np.uint64(end - 1), side="right"))
            here = later[low:high]
            value = self.addresses[np.maximum(here - 1, 0)] if len(self.addresses) else begins[low:high]
            found = (here > 0) & (value >= np.uint64(start))
            index[low:high] = np.where(found, np.searchsorted(self.addresses, value), -1)
            begins[low:high] = value
            ends[low:high] = np.minimum(following[here], np.uint64(min(end, 2**64 - 1)))
        return index, begins, ends

    def name_at(self, address: int) -> str:
        """`symbol+0x12`, `symbol` at its start, or the address itself where no symbol is known."""
        found = self.find(address)
        if found is None:
            return f"{address:#x}"
        symbol, distance = found
        return f"{symbol.name}+{distance:#x}" if distance else symbol.name

    def address_of(self, name: str) -> int | None:
        """Guest-virtual address of the first symbol called `name`, or None."""
        if self._by_name is None:
            # In reverse, so that of several symbols with one name the lowest stays.
            self._by_name = dict(zip(reversed(self._names), reversed(self._addresses), strict=True))
        return self._by_name.get(name)

    def end_of(self, address: int) -> int | None:
        """Where the symbol that covers `address` ends: at the next symbol's address or at its segment's end."""
        end = next((end for start, end in self._ranges if start <= address < end), None)
        if end is None:
            return None
        index = bisect_right(self._addresses, address)
        return min(end, self._addresses[index]) if index < len(self._addresses) else end


def read(image: Image) -> Symbols:
    """Symbols of an image, empty where it carries none. Raises `BadImage` for a damaged .symtab."""
    ranges = [(segment.vaddr, segment.vaddr + segment.memory_size) for segment in image.segments]
    table = next((section for section in image.sections if section.type == SHT_SYMTAB), None)
    if table is not None:
        symbols = _read_symtab(table, image)
        if symbols:
            addresses, types, names = zip(*symbols, strict=True)
            at = np.array(addresses, np.uint64)
            return Symbols(at, "".join(types), lambda: list(names), ranges, "symtab")
    from bt.image import kallsyms

    found = kallsyms.find(_regions(image), image.isa.bits, image.byte_order)
    if found is None:
        return Symbols(np.empty(0, np.uint64), "", list, ranges, "none")
    return Symbols(found.addresses, found.types, lambda: found.names, ranges, "kallsyms")


def _regions(image: Image) -> list[memoryview]:
    """Where kallsyms may lie: .rodata, or every segment where there are no sections."""
    linked = getattr(image.header, "linked", None)
    if linked is not None:
        return [linked(image.elf)]
    rodata = image.section(".rodata")
    if rodata is not None and rodata.vaddr % 8 == 0 and rodata.data:
        return [rodata.data]
    return [segment.data for segment in image.segments if segment.vaddr % 8 == 0]


def _read_symtab(table: Section, image: Image) -> list[Symbol]:
    sections, path = image.sections, image.path
    form = FORMS[image.isa.bits, image.byte_order]
    if table.link >= len(sections) or len(table.data) % form.symbol.size:
        raise BadImage(
            f"{path}: its symbol table has {len(table.data)} bytes in entries of {form.symbol.size} and names in "
            f"section {table.link} of {len(sections)}; it is damaged: strip it or build it again",
        )
    names = bytes(sections[table.link].data)
    state_bit = _STATE_BIT.get(image.isa.name, 0)
    symbols = []
    for entry in form.symbol.iter_unpack(table.data):
        if form.bits == 64:
            name_at, info, _, index, value, _ = entry
        else:
            name_at, value, _, info, _, index = entry
        if index == _SHN_UNDEF or info & 15 in (_STT_SECTION, _STT_FILE) or name_at >= len(names):
            continue
        if image.relocatable and index < len(sections):
            value += sections[index].vaddr
        end = names.find(b"\0", name_at)
        name = names[name_at : end if end >= 0 else len(names)].decode("utf-8", "replace")
        if info & 15 == _STT_FUNC:
            value &= ~state_bit
        if name and name.split(".", 1)[0] not in _MAPPING:
            symbols.append((value, info >> 4 not in (_STB_GLOBAL, _STB_WEAK), name, _letter(info, index, sections)))
    symbols.sort()  # global before local at one address
    return [Symbol(address, letter, name) for address, _, name, letter in symbols]


def _letter(info: int, index: int, sections: Sequence[Section]) -> str:
    binding = info >> 4
    if index == _SHN_ABS:
        letter = "a"
    elif index >= min(len(sections), _SHN_RESERVED):
        letter = "?"
    else:
        section = sections[index]
        if section.flags & SHF_EXECINSTR:
            letter = "t"
        elif section.type == SHT_NOBITS:
            letter = "b"
        elif section.flags & SHF_WRITE:
            letter = "d"
        else:
            letter = "r" if section.flags & SHF_ALLOC else "n"
    if binding == _STB_WEAK:
        letter = "w"
    return letter.upper() if binding in (_STB_GLOBAL, _STB_WEAK) else letter
