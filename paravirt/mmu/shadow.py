"""Shadow page tables, filled on demand and revalidated when the guest flushes.

Room: `paravirt/mmu`. The engine walks tables made here; each shadow table mirrors one guest table
in one *role* (kernel or user view, CR0.WP) and is shared by every address space that links it.
A guest may edit its tables freely: as with a TLB, nothing is noticed until it flushes. Then a
table whose contents differ from the snapshot taken when it was last looked at loses the changed
entries. Permissions accumulate in the engine's own walk, so a shadow table does not depend on where
it is linked. W^X: in the kernel view no page is both writable and executable.
"""

import ctypes
import mmap
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol, TypeVar

import numpy as np

from emulator.isa.x86 import walk as w
from emulator.isa.x86.processor import Fault
from emulator.isa.x86.walk import GuestContext, Walk, Walker
from paravirt import abi, layout
from paravirt.mmu.views import (
    ACTIVE_CODE,
    KERNEL_VIEW,
    MAY_BE_CODE,
    PLAIN,
    USER_CODE,
    USER_VIEW,
    CodeSource,
)

_KEEP_WRITABLE = 2
"""Role bit: CR0.WP is clear, so the guest kernel writes read-only pages."""
_PROBE = 8
"""Role of the four tables that map one frame at address 0 for `_forget_code`."""

_FRAME = 0x000F_FFFF_FFFF_F000
_TABLE_ENTRY = w.PRESENT | w.USER | w.ACCESSED
_LEAF = w.PRESENT | w.USER | w.ACCESSED | w.DIRTY
_NX = w.NO_EXECUTE
_ALL = 0xFFFF_FFFF_FFFF_FFFF
_ROLES = (KERNEL_VIEW, USER_VIEW, KERNEL_VIEW | _KEEP_WRITABLE)
_PLAIN, _MAY_BE_CODE, _ACTIVE_CODE, _USER_CODE = PLAIN, MAY_BE_CODE, ACTIVE_CODE, USER_CODE
_KEY_1 = 1 << 59
_LARGE_SPAN = 0x20_0000
_UNDEFINED = 6
_Found = TypeVar("_Found")


class MappingEngine(Protocol):
    """What shadow paging needs of an engine."""

    def set_root(self, physical: int) -> None: ...

    def flush_tlb(self) -> None: ...

    def code_changed(self, address: int, size: int) -> None: ...


class Root:
    """One guest address space in one role."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


class ShadowPaging:
    """The shadow page tables of one virtual CPU."""

    code: CodeSource

    def __init__(
        self, engine: MappingEngine, memory: memoryview, context: GuestContext, places: layout.Layout = layout.X86_64
    ) -> None:
        self._table_count = places.tables_size >> 12
        self._engine = engine
        self._size = memory.nbytes
        self._frames = memory.nbytes >> 12
        self._guest = np.frombuffer(memory, dtype=np.uint64).reshape(-1, 512)
        self._guest_address = self._guest.ctypes.data
        self.context = context
        self.walker = Walker(memory.cast("Q"), memory.nbytes, context)
        self.pool = mmap.mmap(-1, self._table_count * 4096)
        self._words = memoryview(self.pool).cast("Q")
        self._shadow = np.frombuffer(self.pool, dtype=np.uint64).reshape(-1, 512)
        snapshots = mmap.mmap(-1, self._table_count * 4096)
        self._seen_words = memoryview(snapshots).cast("Q")
        self._seen = np.frombuffer(snapshots, dtype=np.uint64).reshape(-1, 512)
        self._seen_address = self._seen.ctypes.data
        self._compare = ctypes.CDLL(None).memcmp
        self._compare.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        self.kind = np.zeros(self._frames, dtype=np.uint8)
        """Per guest frame: plain, may be code, active code (a translated copy is mapped), or user code."""
        self.executors: dict[int, set[int]] = {}
        """Executable shadow entries (pool word indices) of frames that user code runs from."""
        self.writers: dict[int, list[int]] = {}
        """Writable shadow entries (pool word indices) of frames that may be code."""
        self.view = KERNEL_VIEW
        self.code_guard = 0
        self.fills = 0
        self.prefilled = 0
        self.refills = 0
        self._used = 0
        self._tables: dict[tuple[int, int, int], int] = {}
        self._source: list[int] = []
        self._misses: list[int] = []
        self._below: list[set[int]] = []
        """Per table, the tables it has linked that hold non-global translations."""
        self._roots: dict[tuple[int, int], Root] = {}
        self._stale: set[int] = set()
        self._window = 0
        self._probe: list[int] = []
        self.descriptor_pages: dict[int, int] = {}
        """User view: guest-virtual page -> physical page of the sanitised descriptor table."""
        self._current = Root(0)
        self._offsets = np.arange(512, dtype=np.uint64) << np.uint64(12)
        self._make_probe()

    def attach(self, code: CodeSource) -> None:
        """Connect to the code pages."""
        self.code = code

    @property
    def execute_only(self) -> bool:
        """Translated code is mapped with protection key 1, which the engine can make execute-only."""
        return self.code_guard != 0

    @execute_only.setter
    def execute_only(self, value: bool) -> None:
        self.code_guard = _KEY_1 if value else 0

    def set_kind(self, number: int, kind: int) -> None:
        """Note what a frame is."""
        self.kind[number] = kind

    # -- address spaces -------------------------------------------------------------------------

    @property
    def _role(self) -> int:
        if self.view == USER_VIEW:
            return USER_VIEW
        return KERNEL_VIEW if self.context.write_protect else KERNEL_VIEW | _KEEP_WRITABLE

    def use(self, view: int) -> None:
        """Make the current guest root's tables in `view` the ones the engine walks."""
        self.view = view
        root = self._with_room(lambda: self._root(self._role))
        self._current = root
        if view in self._stale:
            self._stale.discard(view)
            self._revalidate_from(root.index)
        self._engine.set_root(layout.TABLES_BASE + (root.index << 12))

    def load_root(self) -> None:
        """The guest loaded CR3 (`context.root` is the new one): drop what it has changed, and switch."""
        self._stale = {KERNEL_VIEW, USER_VIEW}
        self.use(self.view)

    def flush_all(self) -> None:
        """The guest flushed global translations too, or changed what every translation depends on."""
        for table in range(self._used):
            self._revalidate(table)
        self._stale = set()
        self.use(self.view)

    def invalidate(self, address: int) -> None:
        """INVLPG: drop the translations of one page in both views of the current address space."""
        flush = False
        for role in (self._role if self.view == KERNEL_VIEW else KERNEL_VIEW, USER_VIEW):
            root = self._roots.get((self.context.root, role))
            if root is not None and self._invalidate_in(root.index, address):
                flush = True
        if flush:
            self._engine.flush_tlb()

    def _root(self, role: int) -> Root:
        key = (self.context.root, role)
        root = self._roots.get(key)
        if root is None:
            guest = key[0] if key[0] < self._size else -1
            root = Root(self._table(guest, 4, role))
            self._roots[key] = root
        return root

    def _invalidate_in(self, table: int, address: int) -> bool:
        words, seen = self._words, self._seen_words
        for shift in (39, 30, 21, 12):
            index = (address >> shift) & 511
            at = (table << 9) + index
            entry = words[at]
            if not entry & 1:
                return False
            source = self._source[table]
            if source >= 0 and self._walk_word((source >> 3) + index) != seen[at]:
                words[at] = 0
                return True
            if entry & w.LARGE or entry & _FRAME < layout.TABLES_BASE:
                return False
            table = ((entry & _FRAME) - layout.TABLES_BASE) >> 12
            if table >= self._table_count:
                return False
        return False

    def _walk_word(self, index: int) -> int:
        return int(self.walker.words[index])

    # -- tables ---------------------------------------------------------------------------------

    def _table(self, guest: int, level: int, role: int) -> int:
        """The shadow table for the guest table at physical `guest` (or -1: no guest table)."""
        key = (guest, level, role)
        table = self._tables.get(key)
        if table is not None:
            # It may have been out of reach of the roots that were loaded since, and so may what it links: a guest
            # that frees and allocates its tables in order builds the same tree again, of the same frames.
            self._revalidate_from(table)
            return table
        if self._used == self._table_count:
            raise ShadowPoolExhausted
        table = self._used
        self._used += 1
        self._source.append(guest)
        self._misses.append(0)
        self._below.append(set())
        self._tables[key] = table
        if guest >= 0:
            self._seen[table] = self._guest[guest >> 12]
        return table

    def reset(self) -> None:
        """Forget every shadow table (the pool is full); the caller reloads the root."""
        self._shadow[: self._used] = 0
        self._used = 0
        self._source.clear()
        self._misses.clear()
        self._below.clear()
        self._tables.clear()
        self._roots.clear()
        self.writers.clear()
        self.executors.clear()
        self._stale = set()
        self._window = 0
        self._make_probe()
        self.kind[self.kind == _ACTIVE_CODE] = _MAY_BE_CODE
        self.code.forget_mappings()
        self.use(self.view)

    def _with_room(self, install: Callable[[], _Found]) -> _Found:
        """Do what takes tables of the pool; when none is left forget them all, and do it again."""
        try:
            return install()
        except ShadowPoolExhausted:
            self.reset()
            return install()

    def _make_probe(self) -> None:
        """Take the tables of `_forget_code` beforehand, since it may not fail."""
        self._probe = [self._table(-1, 1, _PROBE + level) for level in range(4)]
        for upper, lower in pairwise(self._probe):
            self._words[upper << 9] = layout.TABLES_BASE + (lower << 12) | _TABLE_ENTRY

    def _revalidate(self, table: int) -> None:
        """Drop the entries whose guest entry is no longer what it was."""
        source = self._source[table]
        if source < 0:
            return
        if self._compare(self._guest_address + source, self._seen_address + (table << 12), 4096):
            guest, seen, shadow = self._guest[source >> 12], self._seen[table], self._shadow[table]
            shadow[guest != seen] = 0
            seen[:] = guest
            self._misses[table] = 0

    def _revalidate_from(self, top: int) -> None:
        """Revalidate a table and all below it that hold non-global translations, by whichever root they were linked."""
        compare, source, below = self._compare, self._source, self._below
        guest, seen = self._guest_address, self._seen_address
        reached, waiting = {top}, [top]
        while waiting:
            table = waiting.pop()
            at = source[table]
            if at >= 0 and compare(guest + at, seen + (table << 12), 4096):
                self._revalidate(table)
            fresh = below[table] - reached
            reached |= fresh
            waiting.extend(fresh)

    # -- filling --------------------------------------------------------------------------------

    def fill(self, address: int, write: bool, fetch: bool) -> None:
        """Make `address` accessible as the guest's tables allow; raises the guest's own `Fault`."""
        walk = self.walker.walk(address, write, self.view == USER_VIEW, fetch)
        if fetch and walk.frame >= self._size:
            raise Fault(_UNDEFINED)  # a bus without a device gives all ones, which is no instruction
        self.fills += 1
        self._with_room(lambda: self._install(walk, write, fetch))

    def _install(self, walk: Walk, write: bool, fetch: bool) -> None:
        words, seen = self._words, self._seen_words
        address, entries, role = walk.address, walk.entries, self._role
        table = self._current.index
        level, leaf = 4, walk.level
        path = [table]
        while level > leaf:
            at = (table << 9) + ((address >> (level * 9 + 3)) & 511)
            entry, guest = words[at], entries[level]
            if entry & 1 and seen[at] == guest:
                table = ((entry & _FRAME) - layout.TABLES_BASE) >> 12
            else:
                table = self._table(walk.tables[level - 1], level - 1, role)
                self._link(at, table, guest, role)
                if entry & 1:
                    self._engine.flush_tlb()
            path.append(table)
            level -= 1
        if leaf > 1:
            table = self._install_large(table, walk, write, fetch)
        if table >= 0:
            at = (table << 9) + ((address >> 12) & 511)
            old = words[at]
            new = self._leaf(walk, at, write, fetch)
            words[at] = new
            if leaf == 1:
                seen[at] = entries[1]
                self._note_miss(table)
            if old & 1 and old != new:
                self._engine.flush_tlb()
        if not entries[leaf] & w.GLOBAL:
            for upper, lower in pairwise(path):
                self._below[upper].add(lower)

    def _link(self, at: int, table: int, guest: int, role: int) -> None:
        rights = (guest & (w.WRITABLE | _NX)) | (w.WRITABLE if role & _KEEP_WRITABLE else 0)
        self._words[at] = layout.TABLES_BASE + (table << 12) | _TABLE_ENTRY | rights
        self._seen_words[at] = guest

    def _leaf(self, walk: Walk, at: int, write: bool, fetch: bool) -> int:
        """The shadow entry for one 4 KiB page."""
        frame, role = walk.frame, self._role
        if frame >= self._size:
            return self._device_page(frame) | _LEAF | w.WRITABLE | _NX
        number = frame >> 12
        kernel = role != USER_VIEW
        if fetch and kernel:
            if self.kind[number] == _USER_CODE:
                self._retire_user_code(number)
            return self.code.activate(walk.address & ~0xFFF, number, at) | _LEAF | self.code_guard
        dirty = walk.entries[walk.level] & w.DIRTY != 0
        writable = write or (dirty and (walk.writable or role & _KEEP_WRITABLE != 0))
        kind = self.kind[number]
        if not kernel and not walk.no_execute and (fetch or kind == _USER_CODE):
            return self._user_code(number, at) | (w.WRITABLE if writable else 0)
        if kind and writable:
            # Code that the guest may write is about to be: it reads what it patches first.
            if write or (kind == _ACTIVE_CODE and self.code_guard):
                if kind == _ACTIVE_CODE:
                    self.code.deactivate(number)
                elif kind == _USER_CODE:
                    self._retire_user_code(number)
                self.writers.setdefault(number, []).append(at)
            else:
                writable = False
        return frame | _LEAF | _NX | (w.WRITABLE if writable else 0)

    def _user_code(self, number: int, at: int) -> int:
        """The executable entry for a frame that user code runs from, untouched: it is innocuous there.

        From now on a store through any other mapping is seen, since the engine may keep what it made of the code.
        """
        kind = self.kind[number]
        if kind != _USER_CODE:
            if kind == _ACTIVE_CODE:
                self.code.deactivate(number)
            self.revoke_writers(number)
            self.kind[number] = _USER_CODE
        self.executors.setdefault(number, set()).add(at)
        return number << 12 | _LEAF

    def written(self, number: int) -> None:
        """The hypervisor is about to write to a guest frame for the guest: code in it leaves use."""
        kind = self.kind[number]
        if kind == _ACTIVE_CODE:
            self.code.deactivate(number)
        elif kind == _USER_CODE:
            self._retire_user_code(number)

    def _retire_user_code(self, number: int) -> None:
        """A frame with user code is about to be written, or to run as kernel code."""
        words = self._words
        for at in self.executors.pop(number, ()):
            if (words[at] & _FRAME) >> 12 == number:
                words[at] = 0
        self.kind[number] = _MAY_BE_CODE
        self.flush_tlb()
        self._forget_code(number)

    def _forget_code(self, number: int) -> None:
        """Let the engine forget what it made of a frame's code: it asks for an address that maps the frame."""
        root, leaf = self._probe[0], self._probe[3]
        self._words[leaf << 9] = number << 12 | _LEAF
        self._engine.set_root(layout.TABLES_BASE + (root << 12))
        self._engine.code_changed(0, 4096)
        self._engine.set_root(layout.TABLES_BASE + (self._current.index << 12))

    def _device_page(self, frame: int) -> int:
        return frame if frame < (1 << 32) else layout.OPEN_BUS

    def _install_large(self, table: int, walk: Walk, write: bool, fetch: bool) -> int:
        """Map a guest large page: by one large entry, or by a table of small ones (returned, or -1)."""
        words, seen, role = self._words, self._seen_words, self._role
        leaf, address = walk.level, walk.address
        guest = walk.entries[leaf]
        at = (table << 9) + ((address >> (leaf * 9 + 3)) & 511)
        if leaf == 3:
            entry = words[at]
            middle = self._synthetic(walk.frame & ~0x3FFF_FFFF, 2, role)
            if not entry & 1 or seen[at] != guest:
                self._link_large(at, middle, guest, walk, role)
                if entry & 1:
                    self._engine.flush_tlb()
            at = (middle << 9) + ((address >> 21) & 511)
        base = walk.frame & ~(_LARGE_SPAN - 1)
        entry = words[at]
        if not fetch and self._clean(base):
            new = base | _LEAF | w.LARGE | _NX
            if write or (guest & w.DIRTY and (guest & w.WRITABLE or role & _KEEP_WRITABLE)):
                new |= w.WRITABLE
            words[at] = new
            if leaf == 2:
                seen[at] = guest
            if entry & 1 and entry != new:
                self._engine.flush_tlb()
            return -1
        small = self._synthetic(base, 1, role)
        if leaf == 2:
            self._link_large(at, small, guest, walk, role)
        else:
            words[at] = layout.TABLES_BASE + (small << 12) | _TABLE_ENTRY | w.WRITABLE
        if entry & 1 and entry != words[at]:
            self._engine.flush_tlb()
        return small

    def _link_large(self, at: int, table: int, guest: int, walk: Walk, role: int) -> None:
        """Link a table of pieces; the rights of the guest's large entry hold for all of them."""
        rights = guest & _NX
        if guest & w.DIRTY and (guest & w.WRITABLE or role & _KEEP_WRITABLE):
            rights |= w.WRITABLE
        self._words[at] = layout.TABLES_BASE + (table << 12) | _TABLE_ENTRY | rights
        self._seen_words[at] = guest

    def _clean(self, base: int) -> bool:
        """Whether 2 MiB at guest-physical `base` are plain memory throughout."""
        first = base >> 12
        return first + 512 <= self._frames and not self.kind[first : first + 512].any()

    def _synthetic(self, base: int, level: int, role: int) -> int:
        """The table that splits a guest large page at `base`; level 1 is filled at once."""
        key = (base | 1, level, role)
        table = self._tables.get(key)
        if table is not None:
            return table
        if self._used == self._table_count:
            raise ShadowPoolExhausted
        table = self._used
        self._used += 1
        self._source.append(-1)
        self._misses.append(0)
        self._below.append(set())
        self._tables[key] = table
        if level == 1:
            self._fill_pieces(table, base)
        return table

    def _fill_pieces(self, table: int, base: int) -> None:
        """Map every page of a split large page, code in use read-only; devices wait for their fault."""
        first = base >> 12
        if first >= self._frames:
            return
        count = min(512, self._frames - first)
        rights = _LEAF | w.WRITABLE | _NX
        pieces = (self._offsets[:count] + np.uint64(base)) | np.uint64(rights)
        pieces[self.kind[first : first + count] >= _ACTIVE_CODE] &= np.uint64(_ALL ^ w.WRITABLE)
        self._shadow[table, :count] = pieces
        self.prefilled += int(count)

    def _note_miss(self, table: int) -> None:
        """A table that misses again and again is filled as far as its accessed bits allow."""
        misses = self._misses[table] + 1
        self._misses[table] = misses
        if misses >= 2 and misses & (misses - 1) == 0:
            self._prefill(table)

    def _prefill(self, table: int) -> None:
        """Enter all accessed, plain pages of the guest table that a shadow table mirrors."""
        source = self._source[table]
        if source < 0:
            return
        guest, shadow, seen = self._guest[source >> 12], self._shadow[table], self._seen[table]
        role = self._role
        wanted = w.PRESENT | w.ACCESSED | (w.USER if role == USER_VIEW else 0)
        frames = (guest & np.uint64(_FRAME)) >> np.uint64(12)
        usable = (shadow == 0) & ((guest & np.uint64(wanted)) == np.uint64(wanted)) & (frames < self._frames)
        places = np.flatnonzero(usable)
        if not len(places):
            return
        chosen, numbers = guest[places], frames[places].astype(np.int64)
        dirty_writable = np.uint64(w.WRITABLE | w.DIRTY)
        if role & _KEEP_WRITABLE:
            dirty_writable = np.uint64(w.DIRTY)
        plain = self.kind[numbers] == _PLAIN
        writable = ((chosen & dirty_writable) == dirty_writable) & plain
        entries = (chosen & np.uint64(_FRAME)) | np.uint64(_LEAF)
        entries |= np.where(writable, np.uint64(w.WRITABLE), np.uint64(0))
        entries |= np.uint64(_NX)  # what user code runs from is entered at its first execution
        shadow[places] = entries
        seen[places] = chosen
        self.prefilled += len(places)

    # -- code frames ----------------------------------------------------------------------------

    def mark_code(self, first: int, last: int) -> None:
        """Guest frames `first`..`last` may hold kernel code: map them read-only until they are written."""
        region = self.kind[max(0, first) : min(self._frames, last + 1)]
        region[region == _PLAIN] = _MAY_BE_CODE

    def revoke_writers(self, number: int) -> None:
        """Take every writable mapping of a frame away, since it is about to execute."""
        changed = False
        words = self._words
        if self.kind[number] == _PLAIN:
            changed = self._revoke_by_search(number)
            self.kind[number] = _MAY_BE_CODE
        base = (number << 12) & ~(_LARGE_SPAN - 1) | 1
        pieces = [(self._tables.get((base, 1, role)), number & 511) for role in _ROLES]
        split = [(table << 9) + index for table, index in pieces if table is not None]
        for at in (*self.writers.pop(number, ()), *split):
            entry = words[at]
            if entry & 3 == 3 and (entry & _FRAME) >> 12 == number:
                words[at] = entry & ~w.WRITABLE
                changed = True
        if changed:
            self._engine.flush_tlb()

    def _revoke_by_search(self, number: int) -> bool:
        """Look through all shadow tables for writable mappings of a frame not known to hold code."""
        pool = self._shadow[: self._used]
        small = (pool & np.uint64(_FRAME | w.LARGE | 3)) == np.uint64((number << 12) | 3)
        large = (pool & np.uint64(_FRAME & ~(_LARGE_SPAN - 1) | w.LARGE | 1)) == np.uint64(
            (number << 12) & ~(_LARGE_SPAN - 1) | w.LARGE | 1
        )
        found = bool(small.any()) or bool(large.any())
        if found:
            pool[small] &= np.uint64(_ALL ^ w.WRITABLE)
            pool[large] = 0
        return found

    def drop(self, at: int) -> None:
        """Remove one shadow entry (a pool word index)."""
        self._words[at] = 0

    def flush_tlb(self) -> None:
        """Let the engine forget what it has cached."""
        self._engine.flush_tlb()

    def frame_of(self, address: int) -> int:
        """Number of the guest frame that the guest kernel has mapped at `address`, or -1."""
        try:
            frame = self.walker.walk(address, False, False, False).frame
        except Fault:
            return -1
        return frame >> 12 if frame < self._size else -1

    def expose(self, address: int, frame: int, writable: bool) -> int:
        """Overwrite the leaf entry of a page of kernel code; returns the pool word index.

        Raises the guest's `Fault` when the page is not mapped any more and may not be.
        """
        at = self._leaf_of(address)
        if at < 0:
            self.fill(address, False, True)
            at = self._leaf_of(address)
        self._words[at] = frame << 12 | _LEAF | (w.WRITABLE if writable else 0)
        self._engine.flush_tlb()
        return at

    def _leaf_of(self, address: int) -> int:
        """Pool word index of the last-level entry for `address` in the current view, or -1."""
        table = self._current.index
        for shift in (39, 30, 21):
            entry = self._words[(table << 9) + ((address >> shift) & 511)]
            if not entry & 1 or entry & w.LARGE:
                return -1
            table = ((entry & _FRAME) - layout.TABLES_BASE) >> 12
        return (table << 9) + ((address >> 12) & 511)

    # -- the hypervisor's own mappings ----------------------------------------------------------

    def install_window(self) -> None:
        """Map the hypervisor window in the current (kernel) view."""
        self._with_room(self._install_window)

    def _install_window(self) -> None:
        if not self._window:
            self._window = self._window_table()
        table, role = self._current.index, self._role
        for level in (4, 3):
            at = (table << 9) + 511
            entry = self._words[at]
            if entry & 1:
                table = ((entry & _FRAME) - layout.TABLES_BASE) >> 12
                continue
            source = self._source[table]
            guest = self._walk_word((source >> 3) + 511) if source >= 0 else 0
            below = guest & _FRAME
            known = guest & 1 and not guest & w.LARGE and below < self._size
            child = self._table(below if known else -1 - (table << 4) - level, level - 1, role)
            self._words[at] = layout.TABLES_BASE + (child << 12) | _TABLE_ENTRY | w.WRITABLE
            self._seen_words[at] = guest
            table = child
        source = self._source[table]
        at = (table << 9) + 511
        self._words[at] = layout.TABLES_BASE + (self._window << 12) | _TABLE_ENTRY | w.WRITABLE
        self._seen_words[at] = self._walk_word((source >> 3) + 511) if source >= 0 else 0
        self._engine.flush_tlb()

    def _window_table(self) -> int:
        """The last-level table of the window: fixups read-execute, the shared page read-write."""
        table = self._table(-1, 1, 0)
        fixups = abi.FIXUP_SIZE >> 12
        for index in range(fixups):
            self._words[(table << 9) + index] = layout.WINDOW_BASE + (index << 12) | _LEAF
        shared = (abi.SHARED_PAGE - abi.HYPERVISOR_BASE) >> 12
        self._words[(table << 9) + shared] = layout.WINDOW_BASE + (shared << 12) | _LEAF | w.WRITABLE | _NX
        return table

    def user_reaches(self, address: int) -> bool:
        """Whether the tables in use let user code reach `address`."""
        table = self._current.index
        for shift in (39, 30, 21, 12):
            entry = self._words[(table << 9) + ((address >> shift) & 511)]
            if entry & (w.PRESENT | w.USER) != w.PRESENT | w.USER:
                return False
            if entry & _FRAME < layout.TABLES_BASE or (shift < 39 and entry & w.LARGE):
                return True
            table = ((entry & _FRAME) - layout.TABLES_BASE) >> 12
        return True

    def install_descriptors(self, address: int) -> bool:
        """User view: map the sanitised descriptor table's page at `address` for the CPU alone."""
        physical = self.descriptor_pages.get(address >> 12)
        if physical is None or self.view != USER_VIEW:
            return False
        return self._with_room(lambda: self._install_descriptors(address, physical))

    def _install_descriptors(self, address: int, physical: int) -> bool:
        table = self._current.index
        for level, shift in ((4, 39), (3, 30), (2, 21)):
            at = (table << 9) + ((address >> shift) & 511)
            entry = self._words[at]
            if entry & 1 and not entry & w.LARGE:
                table = ((entry & _FRAME) - layout.TABLES_BASE) >> 12
                continue
            if entry & 1:
                return False
            child = self._table(-1 - (self._used << 4) - level, level - 1, USER_VIEW)
            self._words[at] = layout.TABLES_BASE + (child << 12) | w.PRESENT | w.WRITABLE | w.ACCESSED
            self._seen_words[at] = self._source_word(table, (address >> shift) & 511)
            table = child
        at = (table << 9) + ((address >> 12) & 511)
        self._words[at] = physical | w.PRESENT | w.WRITABLE | w.ACCESSED | w.DIRTY | _NX
        self._seen_words[at] = self._source_word(table, (address >> 12) & 511)
        return True

    def _source_word(self, table: int, index: int) -> int:
        source = self._source[table]
        return self._walk_word((source >> 3) + index) if source >= 0 else 0


class ShadowPoolExhausted(Exception):
    """Every shadow table frame is in use."""


__all__ = ["KERNEL_VIEW", "USER_VIEW", "Root", "ShadowPaging"]
