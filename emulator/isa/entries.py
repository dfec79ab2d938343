"""How a page-table entry reads where the processor walks the guest's own table: per level, as masks and values.

Room: `emulator/isa`. `EntryFormat` is what validating entries needs to know of an instruction set: what an entry points
to, whether it may be written through, and which bits the guest may not have. It decodes one entry as plain numbers and
whole tables as arrays. A walk (`paging`) is another matter. MIPS has no page tables that a processor walks: its kernels
fill a TLB by instructions, each of which is validated as it is done, so there is no format of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

NOTHING, TABLE, MEMORY, MALFORMED = 0, 1, 2, 3
"""What an entry is: maps nothing, points to a table, maps a page or a large page, or is none that may be used."""


@dataclass(frozen=True, slots=True)
class EntryLevel:
    """The entries of the tables of one level."""

    shift: int
    """Bits of an address below the index: 12 in a table of pages."""
    entries: int
    """Entries in one frame of such a table; what lies behind them in the frame is not used."""
    present: int
    """An entry with none of these bits maps nothing."""
    kind_mask: int
    """The bits that tell a table from memory."""
    table: int
    """Their value in an entry that points to a table; -1 where there is none."""
    memory: int
    """Their value in an entry that maps memory; -1 where there is none."""
    forbidden: int
    """Bits that a present entry may not have: reserved ones, and those by which a processor would give more rights, or
    map more, than the rest of the entry says."""
    memory_forbidden: int = 0
    """The same, of entries that map memory only: address bits inside a large page."""
    table_forbidden: int = 0
    """The same, of entries that point to tables only."""
    table_address: int = 0
    """The physical address in an entry that points to a table."""
    memory_address: int = 0
    """The physical address in an entry that maps memory."""
    write: tuple[int, int] = (0, -1)
    """(mask, value): an entry that maps memory is writable when its masked bits have this value."""
    execute: tuple[int, int] = (0, 0)
    """The same of its being executable by code of the lowest level; without more said, it is."""
    closed: tuple[int, int] = (0, -1)
    """(mask, value): nothing below an entry that points to a table can be written when its masked bits have this value.
    An entry that points to a table of its own level is a linear mapping, and must have it."""
    marks: int = 0
    """The bits that a processor sets by itself: accessed and dirty."""

    imposed: int = 0
    """Bits that every present entry gets, whatever the guest asked for."""
    stripped: int = 0
    """Bits that no present entry keeps."""
    exchanged: tuple[tuple[int, int, int], ...] = ()
    """(mask, value, bits): of a present entry whose masked bits have the value, these bits are inverted. One of them is
    not in the mask: a guest may not have it, and it says that the entry is to be inverted again when it is read."""

    def decode(self, entry: int) -> int:
        """What one entry is: `NOTHING`, `TABLE`, `MEMORY`, `MALFORMED`."""
        if not entry & self.present:
            return NOTHING
        if entry & self.forbidden:
            return MALFORMED
        kind = entry & self.kind_mask
        if kind == self.memory:
            return MALFORMED if entry & self.memory_forbidden else MEMORY
        return TABLE if kind == self.table and not entry & self.table_forbidden else MALFORMED


@dataclass(frozen=True, slots=True)
class EntryFormat:
    """The page tables of one format."""

    name: str
    entry_size: int
    """Bytes: 4 or 8."""
    levels: tuple[EntryLevel, ...]
    """From the tables of pages up to the root's."""
    root_frames: int = 1
    """Frames of a root table, one behind the other, aligned to their number."""
    kept: int = 0
    """Where not 0: the guest's own values of the bits that are imposed or stripped are kept so many bits higher, to be
    read back. A guest may not have those bits for itself."""
    reserved: range = range(0)
    """Entries of a root that are the hypervisor's."""
    user: tuple[int, int] = (0, 0)
    """(mask, value): user code has what an entry of a root in use leads to when its masked bits have this value."""
    descriptors: Callable[[NDArray[np.uint64]], NDArray[np.bool_]] | None = None
    """Which words of a page of descriptors a guest may have, where its processor reads such from memory."""

    @property
    def top(self) -> int:
        """The root's level."""
        return len(self.levels)

    @property
    def words(self) -> int:
        """Entries that fit into a frame."""
        return 4096 // self.entry_size

    def taken(self, level: int) -> int:
        """Bits that a guest may not have in an entry since its own are kept there."""
        form = self.levels[level - 1]
        taken = (form.imposed | form.stripped) << self.kept if self.kept else 0
        for mask, _, bits in form.exchanged:
            taken |= bits & ~mask
        return taken

    def impose(self, level: int, entry: int) -> int:
        """The entry of a table of `level` as it is stored, of what a guest asked for."""
        form = self.levels[level - 1]
        changed = form.imposed | form.stripped
        if not changed or not entry & form.present:
            return entry
        for mask, value, bits in form.exchanged:
            if entry & mask == value:
                entry ^= bits
        kept = (entry & changed) << self.kept if self.kept else 0
        return entry & ~changed | form.imposed | kept

    def restore(self, level: int, entry: int) -> int:
        """What a guest reads, of an entry as it is stored."""
        form = self.levels[level - 1]
        changed = form.imposed | form.stripped
        if not changed or not self.kept or not entry & form.present:
            return entry
        for mask, _, bits in form.exchanged:
            if entry & bits & ~mask:
                entry ^= bits
        return entry & ~(changed | changed << self.kept) | (entry >> self.kept & changed)


FORMATS: Final = ("x86-64", "i386", "i386 PAE", "armv7", "aarch64")
"""Names of the formats there are."""


def format_of(name: str) -> EntryFormat:
    """The entry format of a name of `FORMATS`. Raises `ValueError` where there is none."""
    if name in ("x86-64", "i386", "i386 PAE"):
        from emulator.isa.x86.entries import ENTRY_FORMATS

        return ENTRY_FORMATS[name]
    if name == "armv7":
        from emulator.isa.arm.entries import SHORT_DESCRIPTORS

        return SHORT_DESCRIPTORS
    if name == "aarch64":
        from emulator.isa.aarch64.entries import GRANULE_4K

        return GRANULE_4K
    if name == "mips32":
        raise ValueError("mips32 has no page tables that the processor walks; its TLB is filled by instructions")
    raise ValueError(f"there is no page-table format called {name!r}; take one of {', '.join(FORMATS)}")
