"""A model of the engine that shadow paging serves: a TLB, a page walk with accumulated rights, faults.

Room: `tests`. `ModelMmu` is the `MappingEngine` of a `ShadowPaging` with `CodePages` behind it, and a CPU that
accesses addresses: it walks the shadow tables, asks for a fill on a fault, and keeps what it found until it is told to
forget.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

from emulator.isa.x86 import walk as w
from emulator.isa.x86.processor import Fault
from emulator.isa.x86.walk import FRAME_MASK, GuestContext, Walker
from emulator.memory import GuestMemory
from paravirt import abi, layout
from paravirt.mmu.code import CodePages
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW
from paravirt.modes.x86.shadow import X86Shadow
from paravirt.translator import Translator, Untouched
from tests.emulator.guest_image import GuestTables

MEMORY = 8 << 20
NX = w.NO_EXECUTE
_KEY = 1 << 59


@dataclass(frozen=True, slots=True)
class Translation:
    """What a walk of the shadow tables gives: it is also what the model's TLB holds."""

    physical: int
    writable: bool
    executable: bool
    key: bool


class ModelMmu:
    """An address space of one guest behind shadow tables."""

    def __init__(
        self, translator: Translator | None = None, guard: bool = False, places: layout.Layout = layout.X86_64
    ) -> None:
        self.places = places
        guest = GuestMemory(MEMORY)
        self.memory = guest.view
        self.context = GuestContext(write_protect=True, no_execute=True)
        self.tables = GuestTables(self.memory)
        self.context.root = self.tables.root
        for page in range(0x20_0000, 0x40_0000, 4096):  # no two pages have the same contents
            self.tables.words[page >> 3] = page
        self.root = -1
        self.flushes = 0
        self.forgotten: list[int] = []
        self.tlb: dict[int, Translation] = {}
        self.copies = memoryview(mmap.mmap(-1, places.code_count << 12))
        self.window = memoryview(mmap.mmap(-1, layout.WINDOW_SIZE))
        self.entry = 0
        self.shadow = X86Shadow(self, guest, self.context, places)
        self.code = CodePages(
            self.memory,
            self.copies,
            self.window,
            translator or Untouched(),
            lambda _page: b"",
            lambda page: page,
            places,
            abi.X86_64,
        )
        self.code.attach(self.shadow)
        self.shadow.frames.execute_only = guard
        self.guard = guard
        self.shadow.use(KERNEL_VIEW)

    # -- the engine that shadow paging sees -------------------------------------------------------

    def set_root(self, physical: int) -> None:
        """CR3."""
        self.root = physical
        self.flush_tlb()

    def flush_tlb(self, _changes: Sequence[tuple[int, int]] | None = None) -> None:
        """Forget all translations."""
        self.tlb.clear()
        self.flushes += 1

    def code_changed(self, address: int, size: int) -> None:
        """Remembers which frame was mapped there."""
        found = self.walk(address)
        assert found is not None
        self.forgotten.append(found.physical >> 12)

    # -- the CPU ----------------------------------------------------------------------------------

    def walk(self, address: int) -> Translation | None:
        """Walk the shadow tables as the engine does at level 3; None when not present or not for users."""
        words = self.shadow.pool.words
        table, writable, executable = self.root, True, True
        for level in range(4, 0, -1):
            index = table - layout.TABLES_BASE
            assert 0 <= index < self.places.tables_size, "the engine walks shadow tables only"
            entry = words[(index >> 3) + (address >> (level * 9 + 3) & 511)]
            if entry & (w.PRESENT | w.USER) != w.PRESENT | w.USER:
                return None
            writable &= entry & w.WRITABLE != 0
            executable &= entry & NX == 0
            if level == 1 or (level == 2 and entry & w.LARGE):
                offset = address & ((1 << (level * 9 + 3)) - 1) & ~0xFFF
                return Translation(entry & FRAME_MASK | offset, writable, executable, entry & _KEY != 0)
            table = entry & FRAME_MASK
        return None

    def allowed(self, found: Translation | None, write: bool, fetch: bool) -> bool:
        """Whether the engine would do the access by this translation."""
        if found is None or (write and not found.writable) or (fetch and not found.executable):
            return False
        return fetch or not (self.guard and found.key)

    def access(self, address: int, write: bool = False, fetch: bool = False) -> int:
        """Physical address of the page that the access reaches; raises the guest's `Fault`."""
        page = address >> 12
        for _ in range(4):
            found = self.tlb.get(page)
            if not self.allowed(found, write, fetch):
                found = self.walk(address)  # a fault walks again: becoming present needs no flush
                if self.allowed(found, write, fetch):
                    assert found is not None
                    self.tlb[page] = found
            if self.allowed(found, write, fetch):
                assert found is not None
                return found.physical
            self.shadow.fill(address, write, fetch)
        raise AssertionError(f"the fill of {address:#x} does not help")

    def expected(self, address: int, write: bool = False, fetch: bool = False) -> int | Fault:
        """What the guest's tables say now, by a walk that keeps nothing and changes nothing."""
        before = bytes(self.memory)
        try:
            frame = Walker(self.tables.words, MEMORY, self.context).walk(
                address, write, self.shadow.view == USER_VIEW, fetch
            )
            return frame.frame
        except Fault as fault:
            return fault
        finally:
            if bytes(self.memory) != before:
                self.memory[:] = before

    def source(self, physical: int) -> int:
        """Address of the guest frame whose bytes a page of the engine's memory shows; -1 for none."""
        if physical < MEMORY:
            return physical
        at = physical - layout.CODE_BASE
        content = bytes(self.copies[at : at + 4096])
        for (_address, frame), copy in self.code._copies.items():
            if copy.physical == physical and bytes(self.memory[frame << 12 : (frame + 1) << 12]) == content:
                return frame << 12
        return -1

    # -- what must hold at every moment -----------------------------------------------------------

    def leaves(self) -> list[tuple[int, int, int]]:
        """(role, entry, pages) of every leaf in every shadow table."""
        words = self.shadow.pool.words
        found = []
        for (_guest, level, role, _place), table in self.shadow.pool._tables.items():
            if role > 3 or level > 2:
                continue
            entries = words[table << 9 : (table + 1) << 9]
            pages = 1 if level == 1 else 512
            found += [(role, entry, pages) for entry in entries if entry & 1 and (level == 1 or entry & w.LARGE)]
        return found

    def check(self) -> None:
        """W^X in the kernel view; code never writable behind the back of what executes it; user view: no copies."""
        executable: set[int] = set()
        writable: set[int] = set()
        for role, entry, pages in self.leaves():
            physical = entry & FRAME_MASK
            may_write, may_execute = entry & w.WRITABLE != 0, entry & NX == 0
            if role != USER_VIEW:
                assert not (may_write and may_execute), f"{entry:#x} of the kernel view is writable and executable"
                assert not may_execute or physical >= layout.CODE_BASE, "kernel code executes from copies only"
            else:
                assert physical < layout.TABLES_BASE or not entry & w.USER, "the user view shows guest memory only"
                if may_execute:
                    executable.add(physical >> 12)
            if may_write and not may_execute and entry & w.USER:
                writable.update(range(physical >> 12, (physical >> 12) + pages))
        active = {frame for (_page, frame), copy in self.code._copies.items() if copy.entries}
        assert not executable & writable, "user code is writable through a mapping without execute right"
        assert not active & writable, "a frame that executes from a copy is writable"
