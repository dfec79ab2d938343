"""Page tables as data: what a walk of any guest's tables gives, and the form of tables that a processor walks.

Room: `emulator/isa`. A walker of an instruction set (`emulator/isa/<isa>/`) reads the guest's tables and returns a
`PageWalk`; a `TableFormat` says how the tables are written that a real processor of it walks. Neither knows the other:
a shadow of two-level tables may have four levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from emulator.isa.exceptions import ArchitecturalException

READ, WRITE, EXECUTE = 1, 2, 4
"""Rights to a page, in one view."""
KERNEL_SHIFT, USER_SHIFT = 0, 3
"""Where the rights of the guest's kernel and of its user code are in `PageWalk.rights`."""
KERNEL_RIGHTS, USER_RIGHTS = 7 << KERNEL_SHIFT, 7 << USER_SHIFT
GLOBAL = 1
"""Attribute: the translation is the same in every address space, and outlives a change of the root."""


class PageWalk:
    """Where a guest-virtual address leads. A walker has one of these and uses it again for every walk."""

    __slots__ = ("address", "attributes", "entries", "frame", "level", "region", "rights", "size", "tables")

    def __init__(self, levels: int = 4) -> None:
        self.address = 0
        """The guest-virtual address asked for."""
        self.frame = 0
        """Guest-physical address of the 4 KiB page that holds it."""
        self.size = 12
        """Bits of an address inside the guest's page: 12 for 4 KiB, 21 for 2 MiB, ..."""
        self.rights = 0
        """What the guest may do to it now without its walker being asked again, for kernel and user code: a page that
        is writable but not marked as written yet lacks the right to write."""
        self.attributes = 0
        """`GLOBAL`."""
        self.region = 0
        """Which of the guest's roots it was reached from."""
        self.level = 1
        """Level of the entry that maps it, counted from 1, in the numbering of the tables that shadow it."""
        self.entries = [0] * (levels + 1)
        """The guest's entry used at each level (index = level); 1 at a level that the guest's tables do not have."""
        self.tables = [-1] * (levels + 1)
        """Guest-physical address of the first entry that the shadow table at each level mirrors; -1 for none."""


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a processor's tables."""

    shift: int
    """Bits of an address below the index."""
    bits: int
    """Bits of the index."""
    mirrored: int = 0
    """Bytes of the guest's table that one table of this level mirrors; 0 where the guest has no such level."""
    ratio: int = 0
    """Of each entry of the guest's, 2 to the power of this are in a table of this level."""


@dataclass(frozen=True, slots=True)
class TableFormat:
    """How tables are written that a processor walks. The tables of rights are indexed by READ | WRITE | EXECUTE."""

    entry_size: int
    """Bytes: 4 or 8."""
    unit: int
    """Bits of an address inside the smallest table; every table is a power of two of these, aligned to its size."""
    levels: tuple[Level, ...]
    """From level 1 (4 KiB pages) up to the root. `mirrored` and `ratio` are the guest's side (see `GuestTables`)."""
    present: int
    """An entry with none of these bits maps nothing."""
    page_mask: int
    """The physical address in an entry that maps a page."""
    table_mask: int
    """The physical address in an entry that points to a table."""
    block_mask: int
    """The physical address in an entry of level 2 that maps a block."""
    pages: tuple[int, ...]
    """Bits of a page's entry, by its rights."""
    blocks: tuple[int, ...]
    """Bits of a block's entry at level 2, by its rights; empty where blocks are not used."""
    tables: tuple[int, ...]
    """Bits of an entry that points to a table, by what it lets through."""
    page_write: tuple[int, int]
    """(mask, value): a page's entry is writable when its masked bits have this value."""
    block_write: tuple[int, int]
    """The same of a block's."""
    limits: bool = True
    """An entry that points to a table limits the rights of what lies below; otherwise a page has all of them."""

    def read_only(self, entry: int) -> int:
        """A page's entry without its right to write."""
        mask, value = self.page_write
        return entry & ~mask | (mask & ~value)


class GuestTables(Protocol):
    """The guest's own tables, read as its processor would: what shadow paging needs of an instruction set."""

    entry_size: int
    """Bytes of an entry: 4 or 8."""
    levels: tuple[Level, ...]
    """The levels of the tables that shadow these, from level 1 up: the form's, with `mirrored` and `ratio` set."""

    @property
    def variant(self) -> int:
        """What the kernel's rights depend on besides the tables, as a small number (x86: CR0.WP clear): tables made for
        another variant are not used."""
        ...

    @property
    def roots(self) -> tuple[int, ...]:
        """What names the address space in use: a number for each region, its root's guest-physical address on most."""
        ...

    @property
    def root_tables(self) -> tuple[int, ...]:
        """Guest-physical address of the table at the top of each region."""
        ...

    def region(self, address: int) -> int:
        """Which of the roots an address is reached from."""
        ...

    def below(self, entry: int, level: int, address: int) -> int:
        """Guest-physical address of what the shadow table below mirrors, on the way to `address`, of the guest's entry
        at `level`; -1 where it points to no table."""
        ...

    def walk(self, address: int, write: bool, user: bool, fetch: bool) -> PageWalk:
        """Translate for an access, with its effects on the tables (accessed, dirty). Raises the guest's exception."""
        ...

    def through(self, entry: int, user: bool) -> int:
        """The rights that an entry pointing to a table lets through."""
        ...

    def carried(self, entry: int, level: int) -> int:
        """Bits of the guest's entry above a page that the shadow's entry there shows as they are (ARM's domain)."""
        ...

    def own_rights(self, entry: int, user: bool) -> int:
        """The rights that a large page's entry gives by itself, as `PageWalk.rights` has them."""
        ...

    def ahead(
        self, entries: NDArray[np.generic], user: bool
    ) -> tuple[NDArray[np.bool_], NDArray[np.uint64], NDArray[np.bool_]]:
        """Of a table of 4 KiB pages: which entries may be used without a side effect, their guest-physical addresses,
        and which of them may be written so."""
        ...

    def no_code(self, address: int) -> ArchitecturalException:
        """What the guest gets for a fetch from an address that no memory backs."""
        ...
