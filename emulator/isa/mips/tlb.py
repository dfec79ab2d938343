"""The TLB of MIPS32 and the segments before it: from a guest-virtual address to a guest-physical one, or an exception.

Room: `emulator/isa/mips`. A joint TLB of `size` entries, each for a pair of pages, looked up by page number and ASID.
Source: MIPS32 Privileged Resource Architecture (MD00090), chapter 4. Plain values; knows no engine and no memory.
"""

from dataclasses import dataclass

from emulator.isa.mips import registers as r
from emulator.isa.mips.exceptions import MipsException

_PAIR = 0x1FFF
_MASK, _LOW = 0x1FFF_E000, 0x03FF_FFFE
"""Bits of an entry's mask, and of what it has of EntryLo0 and EntryLo1."""
_GLOBAL_KEY = 256
"""In place of an ASID: an entry that any of them matches."""
_VALID, _DIRTY = 2, 4


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: a pair of pages."""

    vpn2: int
    """Virtual address of the pair."""
    mask: int
    """PageMask: the bits of the address above a pair of small pages that are not compared."""
    asid: int
    is_global: bool
    low: int
    """EntryLo0 without G: frame number at bit 6, C, D, V."""
    high: int
    """EntryLo1, as `low`."""

    @property
    def key(self) -> tuple[int, int]:
        """What finds an entry of small pages."""
        return self.vpn2, _GLOBAL_KEY if self.is_global else self.asid

    def matches(self, address: int, asid: int) -> bool:
        """Whether the entry is that of `address` in an address space."""
        return (self.is_global or self.asid == asid) and not (self.vpn2 ^ address) & ~(self.mask | _PAIR)


@dataclass(frozen=True, slots=True)
class TlbState:
    """All entries as a value, and which of several that match an address is found."""

    entries: tuple[Entry | None, ...]
    small: tuple[tuple[tuple[int, int], int], ...]
    large: tuple[int, ...]


class Tlb:
    """All entries, by index."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.entries: list[Entry | None] = [None] * size
        self._small: dict[tuple[int, int], int] = {}
        self._large: list[int] = []

    def write(self, index: int, entry: Entry) -> Entry | None:
        """Replace an entry; gives the one that was there."""
        old = self.entries[index]
        if old is not None:
            if old.mask:
                self._large.remove(index)
            elif self._small.get(old.key) == index:
                del self._small[old.key]
        self.entries[index] = entry
        if entry.mask:
            self._large.append(index)
        else:
            self._small[entry.key] = index
        return old

    def find(self, address: int, asid: int) -> int:
        """Index of the entry that matches, or -1."""
        pair = address & ~_PAIR
        index = self._small.get((pair, asid))
        if index is None:
            index = self._small.get((pair, _GLOBAL_KEY), -1)
        if index < 0 and self._large:
            for large in self._large:
                entry = self.entries[large]
                if entry is not None and entry.matches(address, asid):
                    return large
        return index

    def translate(self, address: int, asid: int, store: bool) -> tuple[int, bool, bool]:
        """Guest-physical address of a mapped `address`, whether it may be written, and whether in every address space.

        Raises `MipsException`: a refill, an invalid entry, or a store to a clean page.
        """
        index = self.find(address, asid)
        entry = self.entries[index] if index >= 0 else None
        if entry is None:
            raise MipsException(r.TLBS if store else r.TLBL, 1, address)
        page = ((entry.mask | _PAIR) + 1) >> 1
        half = entry.high if address & page else entry.low
        if not half & _VALID:
            raise MipsException(r.TLBS if store else r.TLBL, 0, address)
        if store and not half & _DIRTY:
            raise MipsException(r.MOD, 0, address)
        frame = (half >> 6 << 12) & ~(page - 1)
        return frame | address & page - 1, bool(half & _DIRTY), entry.is_global

    @property
    def saved(self) -> TlbState:
        """Everything, for `restore`."""
        return TlbState(tuple(self.entries), tuple(self._small.items()), tuple(self._large))

    def check(self, saved: TlbState) -> None:
        """Raise `ValueError` for what such a TLB cannot have."""
        entries, indices = saved.entries, range(self.size)
        known = [entry for entry in entries if entry is not None]
        ok = (
            len(entries) == self.size
            and all(index in indices for _, index in saved.small)
            and all(index in indices for index in saved.large)
            and all(0 <= one.low <= _LOW and 0 <= one.high <= _LOW and 0 <= one.asid <= 0xFF for one in known)
            and all(0 <= one.vpn2 < 1 << 32 and not one.vpn2 & _PAIR for one in known)
            and all(0 <= one.mask <= _MASK and not one.mask & _PAIR for one in known)
        )
        if not ok or any(entries[index] is None for index in saved.large):
            raise ValueError("the saved TLB has entries that no TLB can have")

    def restore(self, saved: TlbState) -> None:
        """Take up an earlier state, which was checked."""
        self.entries[:] = saved.entries
        self._small, self._large = dict(saved.small), list(saved.large)

    @property
    def state(self) -> tuple[Entry | None, ...]:
        """All entries as a plain value."""
        return tuple(self.entries)


def entry_of(entry_hi: int, page_mask: int, entry_lo0: int, entry_lo1: int) -> Entry:
    """The entry that TLBWI and TLBWR make of the registers (ISA, TLBWI)."""
    mask = page_mask & _MASK
    return Entry(
        vpn2=entry_hi & ~(mask | _PAIR) & 0xFFFF_FFFF,
        mask=mask,
        asid=entry_hi & 0xFF,
        is_global=bool(entry_lo0 & entry_lo1 & 1),
        low=entry_lo0 & _LOW,
        high=entry_lo1 & _LOW,
    )
