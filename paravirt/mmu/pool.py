"""The memory that shadow tables are made of, each with a snapshot of the part of a guest's table that it mirrors.

Room: `paravirt/mmu`. A table is known by the number of its first unit (the form's smallest table). A change of the
guest's table is found by comparing it with the snapshot; nothing is noticed before that is done.
"""

import ctypes
import mmap
from collections.abc import Callable
from typing import Final

import numpy as np

from emulator.errors import RetrapError
from emulator.isa.paging import GuestTables, Level, TableFormat

Key = tuple[int, int, int, int]
"""What a table is known by: guest-physical address of what it mirrors, level, role, and virtual place (the address bits
above those that it covers). Code in a kernel's view is made for its address, so no table is at two places."""


_Compared = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, bytearray, int]
_Written = tuple[int, int, int, int, memoryview, int]
_not_equal = np.not_equal

_FEW: Final = 16
"""Entries that are dropped one by one."""
SHARE: Final = 0.02
"""Of the guest's memory, what its shadow may take at most: tables, snapshots, and what is known of each."""
FLOOR: Final = 512 << 10
"""Bytes that the shadow may take of a guest however small: one address space in both views, large pages split."""
NOTES: Final = 1 << 10
"""Bytes of Python's that a table costs beside itself and its snapshot: key, links, arrays; at most."""


def most_units(unit: int, memory: int) -> int:
    """How many units of 2**`unit` bytes the shadow of a guest may have, by bytes of its memory."""
    return max(FLOOR >> unit + 1, int(memory * SHARE) // ((2 << unit) + NOTES))


class ShadowPoolExhausted(RetrapError):
    """Every unit for shadow tables is in use: all are forgotten then. A guest for one of whose address spaces there is
    too little, which the floor prevents, ends by this."""


class TablePool:
    """Shadow tables of one form, and what they mirror of the guest's tables."""

    def __init__(self, form: TableFormat, physical: int, size: int, memory: memoryview, base: int) -> None:
        """`physical` is where the engine has the pool, `size` its bytes; guest memory lies at `base`."""
        self.form = form
        self.physical = physical
        self.size = size
        self.memory = mmap.mmap(-1, size)
        self.words = memoryview(self.memory).cast("Q" if form.entry_size == 8 else "I")
        """Entries of all tables."""
        self.shift = form.unit - (3 if form.entry_size == 8 else 2)
        """Bits of an entry's index inside a unit: entry `index` of `table` is `words[(table << shift) + index]`."""
        self.dtype = np.dtype(np.uint64 if form.entry_size == 8 else np.uint32)
        self.entries = np.frombuffer(self.memory, dtype=self.dtype).reshape(size >> form.unit, -1)
        """The same words, by unit."""
        self._flat = self.entries.reshape(-1)
        self.units = min(size >> form.unit, most_units(form.unit, memory.nbytes))
        """How many units there may be: bounded by the pool's size, and by the guest's memory."""
        self.level_of = np.zeros(self.units, dtype=np.uint8)
        self._guest_bytes = memory
        self._guest = np.frombuffer(memory, dtype=np.uint8)
        self._guest_address = self._guest.ctypes.data
        self._guest_size = memory.nbytes
        self._base = base
        self.held = bytearray(size + mmap.PAGESIZE)
        """Where the snapshots are, from a page's beginning on: whoever watches them watches whole pages."""
        self._skip = -np.frombuffer(self.held, dtype=np.uint8).ctypes.data % mmap.PAGESIZE
        self._snapshots = memoryview(self.held)[self._skip : self._skip + size]
        self._seen_bytes = np.frombuffer(self._snapshots, dtype=np.uint8)
        self._seen_address = self._seen_bytes.ctypes.data
        self._compare = ctypes.CDLL(None).memcmp
        self._compare.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        self.used = 0
        """The first unit that was not used yet."""
        self.source: list[int] = []
        """By unit: offset in guest memory of what its table mirrors, or -1."""
        self._span: list[int] = []
        self.misses: list[int] = []
        self.below: list[set[int]] = []
        """By unit, the tables that its table has linked and that hold non-global translations."""
        self._tables: dict[Key, int] = {}
        self._keys: dict[int, Key] = {}
        """The other way round, of `_keyed`; made when it is asked for."""
        self._keyed = self._tables
        self._compared: dict[int, _Compared] = {}
        """By table, the arrays of `revalidate`, made when a table is looked at first."""
        self._written: dict[int, _Written] = {}
        """By table, what `follow` needs, likewise."""
        self._marks: dict[int, tuple[np.ndarray, bytearray]] = {}
        """By number of entries, where the result of a comparison is written."""
        self.on_removed: Callable[[list[int]], None] | None = None
        """Called with the places of entries that are about to be removed, where an engine must know them."""

    def speak(self, guest: GuestTables) -> None:
        """From now on mirror such tables; the pool must be empty."""
        self._guest_entry = guest.entry_size
        self.seen = memoryview(self._snapshots).cast("Q" if guest.entry_size == 8 else "I")
        """Entries of the guest's when they were last looked at."""
        self.seen_shift = self.form.unit - (3 if guest.entry_size == 8 else 2)
        self.guest_entries = self._guest_bytes.cast("Q" if guest.entry_size == 8 else "I")
        self.guest_words = np.frombuffer(self._guest, dtype=np.uint64 if guest.entry_size == 8 else np.uint32)
        self._seen_words = np.frombuffer(self._snapshots, dtype=self.guest_words.dtype)
        self.levels = (Level(0, 0), *guest.levels)

    @property
    def bytes_used(self) -> int:
        """Of the host's memory: tables, snapshots, and at most what is known of them."""
        return self.used * ((2 << self.form.unit) + NOTES)

    # -- tables ---------------------------------------------------------------------------------

    def find(self, key: Key) -> int | None:
        """The table that is known by a key, if there is one."""
        return self._tables.get(key)

    def mirror(self, key: Key) -> int:
        """A new table for what lies at the key's guest-physical address. Raises `ShadowPoolExhausted`."""
        guest, level, _, _ = key
        table = self.take(level)
        self.keep(key, table)
        source = guest - self._base
        span = min(self.levels[level].mirrored, self._guest_size - source)  # a root may have fewer entries than it can
        if span > 0 and source >= 0:
            self.source[table], self._span[table] = source, span
            self._look(table, source, span)
        return table

    def role_of(self, table: int) -> int:
        """The role of a table that `find` knows."""
        key = self.key_of(table)
        assert key is not None
        return key[2]

    def key_of(self, table: int) -> Key | None:
        """What `find` knows a table by, if it does."""
        if self._keyed is not self._tables or len(self._keys) != len(self._tables):
            self._keyed, self._keys = self._tables, {known: key for key, known in self._tables.items()}
        return self._keys.get(table)

    def keep(self, key: Key, table: int) -> None:
        """Let `find` know a table, one that mirrors none of the guest's as it is."""
        known = self._keyed is self._tables and len(self._keys) == len(self._tables)
        self._tables[key] = table
        if known:  # tables are made all the time, and to list thousands each time takes long
            self._keys[table] = key

    def units_of(self, level: int) -> int:
        """Units that a table of a level takes."""
        return 1 << max(0, self.form.levels[level - 1].bits - self.shift)

    def take(self, level: int) -> int:
        """A new table that mirrors nothing. Raises `ShadowPoolExhausted`."""
        count = self.units_of(level)
        first = -(-self.used // count) * count  # aligned to its size
        if first + count > self.units:
            raise self.exhausted()
        new = first + count - self.used
        self.source += [-1] * new
        self._span += [0] * new
        self.misses += [0] * new
        self.below += [set() for _ in range(new)]
        self.level_of[first : first + count] = level
        self.used = first + count
        return first

    def exhausted(self) -> ShadowPoolExhausted:
        """What is raised where there are too few units."""
        return ShadowPoolExhausted(
            f"{self.units} units of {1 << self.form.unit} bytes for shadow tables are fewer than one address space "
            "of this guest's needs; give the guest more memory"
        )

    def clear(self) -> None:
        """Forget every table."""
        self.entries[: self.used] = 0
        self.used = 0
        self.source.clear()
        self._span.clear()
        self.misses.clear()
        self.below.clear()
        self._tables.clear()
        self._keys.clear()
        self.forget_arrays()

    def address_of(self, table: int) -> int:
        """Engine-physical address."""
        return self.physical + (table << self.form.unit)

    def table_in(self, entry: int) -> int:
        """The table that an entry points to, or -1 for one that maps a page or a block."""
        offset = (entry & self.form.table_mask) - self.physical
        return offset >> self.form.unit if 0 <= offset < self.size else -1

    def frames_of(self, table: int) -> range:
        """The frames of guest memory that a table mirrors some of."""
        source = self.source[table]
        return range(source >> 12, source + self._span[table] + 0xFFF >> 12) if source >= 0 else range(0)

    # -- snapshots ------------------------------------------------------------------------------

    def _look(self, table: int, source: int, span: int) -> None:
        at = table << self.form.unit
        self._seen_bytes[at : at + span] = self._guest[source : source + span]

    def guest_entry(self, table: int, index: int) -> int:
        """What the guest's entry is now that entry `index` of a table mirrors; 0 where it mirrors none."""
        source = self.source[table]
        if source < 0:
            return 0
        ratio = self.levels[int(self.level_of[table])].ratio
        return int(self.guest_words[source // self._guest_entry + (index >> ratio)])

    def mirrored(self, table: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The guest's entries that a table of level 1 mirrors, as they are now; its own; those of the snapshot."""
        first, count = self.source[table] // self._guest_entry, self._span[table] // self._guest_entry
        own, seen = table << self.shift, table << self.seen_shift
        return (
            self.guest_words[first : first + count],
            self._flat[own : own + count],
            self._seen_words[seen : seen + count],
        )

    def changed(self, table: int) -> bool:
        """Whether the guest has changed what a table mirrors since it was last looked at."""
        source = self.source[table]
        return source >= 0 and bool(
            self._compare(
                self._guest_address + source, self._seen_address + (table << self.form.unit), self._span[table]
            )
        )

    def revalidate(self, table: int) -> bool:
        """Drop the entries whose guest entry is no longer what it was; whether there were any."""
        compared = self._compared.get(table)
        if compared is None:
            if self.source[table] < 0:
                return False
            compared = self._compared[table] = self._arrays(table)
        guest, seen, own, differ, marks, plain = compared
        _not_equal(guest, seen, differ)
        first = marks.find(1)
        if first < 0:
            return False
        if self.below[table]:
            self._unlink(table, own, differ)
        if plain >= 0 and (count := marks.count(1)) <= _FEW:
            self._drop_few(table, marks, first, plain)
            if count > 1:
                self.misses[table] = 0
        else:
            if self.on_removed is not None:
                self._tell_removed(table, differ)
            own[differ] = 0
            seen[:] = guest
            self.misses[table] = 0
        return True

    def _drop_few(self, table: int, marks: bytearray, index: int, plain: int) -> None:
        """Drop the entries that are marked, from `index` on: for a few this takes a third of what arrays take."""
        words, seen, guest = self.words, self.seen, self.guest_entries
        own, mirrored, places = table << self.shift, table << self.seen_shift, []
        while index >= 0:
            if words[own + index]:
                places.append(own + index)
            seen[mirrored + index] = guest[plain + index]
            index = marks.find(1, index + 1)
        if places and self.on_removed is not None:
            self.on_removed(places)
        for at in places:
            words[at] = 0

    def follow(self, table: int, offset: int) -> bool:
        """`revalidate` for a table after a store to the guest's at an `offset` in memory, -1 where nobody knows. Mostly
        one entry changed and it is the one there, which is seen at a third of the cost."""
        written = self._written.get(table)
        if written is None:
            if self.source[table] < 0:
                return False
            written = self._written[table] = self.places(table)
        first, end, own, seen, guest, start = written
        if not first <= offset < end:
            return self.revalidate(table)
        number = offset // self._guest_entry
        entry, at = self.guest_entries[number], seen + number
        if self.seen[at] == entry:
            return self.revalidate(table)
        self.seen[at] = entry
        at = own + number
        if self.words[at]:
            if self.on_removed is not None:
                self.on_removed([at])
            self.words[at] = 0
        self.misses[table] = 0
        if not self.held.startswith(guest, start):
            self.revalidate(table)
        return True

    def _unlink(self, table: int, own: np.ndarray, differ: np.ndarray) -> None:
        """Some entries of a table are about to be dropped: what no other of them leads to is no longer below it, lest
        the tables of address spaces that are gone be compared for ever. Who links such a table again looks at it."""
        there, lost = own != 0, set()
        for entry in own[there & (differ if own.ndim == 1 else differ[:, None])].tolist():
            lost.add(self.table_in(entry))
        if lost:
            for entry in own[there & ~(differ if own.ndim == 1 else differ[:, None])].tolist():
                lost.discard(self.table_in(entry))
            self.below[table] -= lost

    def places(self, table: int) -> _Written:
        """Of a table that mirrors something: where the guest's begins and ends in memory, or nowhere if it has several
        entries for each of those; what to add to the number of a guest's entry in memory for the table's own, and for
        the snapshot's; the guest's bytes, and where they begin where snapshots are held."""
        source, span = self.source[table], self._span[table]
        number = source // self._guest_entry
        return (
            source,
            -1 if self.levels[int(self.level_of[table])].ratio else source + span,
            (table << self.shift) - number,
            (table << self.seen_shift) - number,
            self._guest_bytes[source : source + span],
            (table << self.form.unit) + self._skip,
        )

    def _arrays(self, table: int) -> _Compared:
        """Of a table that mirrors something: the guest's entries, the snapshot, its own (a row for each of the guest's,
        where it has several); where to write which differ, as an array and as its bytes; the number of the guest's
        first entry among the words of memory, or -1 where the table has several for each."""
        source, size = self.source[table], self._guest_entry
        count, ratio = self._span[table] // size, self.levels[int(self.level_of[table])].ratio
        if count not in self._marks:
            marks = bytearray(count)
            self._marks[count] = np.frombuffer(marks, dtype=np.bool_), marks
        at, first = table << self.seen_shift, table << self.shift
        own = self._flat[first : first + (count << ratio)]
        return (
            self.guest_words[source // size : source // size + count],
            self._seen_words[at : at + count],
            own.reshape(count, 1 << ratio) if ratio else own,
            *self._marks[count],
            -1 if ratio else source // size,
        )

    def _tell_removed(self, table: int, differ: np.ndarray) -> None:
        assert self.on_removed is not None
        ratio = self.levels[int(self.level_of[table])].ratio
        if ratio:
            differ = np.repeat(differ, 1 << ratio)
        places = np.flatnonzero(differ) + (table << self.shift)
        there = places[self._flat[places] != 0]
        if len(there):
            self.on_removed(there.tolist())

    def forget_arrays(self) -> None:
        """Tables are others than they were."""
        self._compared.clear()
        self._written.clear()

    def sleep(self, table: int) -> None:
        """Drop all entries of a table that nothing leads to; `wake` must come before it is linked again."""
        first, own = table << self.shift, self.own(table)
        if self.on_removed is not None:
            self.on_removed((np.flatnonzero(own) + first).tolist())
        own[:] = 0
        self.misses[table] = 0
        self.below[table].clear()

    def own(self, table: int) -> np.ndarray:
        """The entries of a table."""
        first = table << self.shift
        return self._flat[first : first + (1 << self.form.levels[int(self.level_of[table]) - 1].bits)]

    def wake(self, table: int) -> None:
        """An empty table is used again: it mirrors what the guest has there now."""
        self._look(table, self.source[table], self._span[table])

    def revalidate_from(self, top: int) -> None:
        """Revalidate a table and all below it that hold non-global translations, by whichever root they were linked."""
        compare, source, span, below = self._compare, self.source, self._span, self.below
        guest, seen, unit = self._guest_address, self._seen_address, self.form.unit
        reached, waiting = {top}, [top]
        while waiting:
            table = waiting.pop()
            at = source[table]
            if at >= 0 and compare(guest + at, seen + (table << unit), span[table]):
                self.revalidate(table)
            fresh = below[table] - reached
            reached |= fresh
            waiting.extend(fresh)

    def revalidate_all(self) -> None:
        """Revalidate every table."""
        for table in range(self.used):
            self.revalidate(table)
