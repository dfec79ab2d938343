"""An engine that must know which entries of its tables were changed is told of every one of them before it goes on."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from emulator.engine.protocol import WHOLE_TABLE
from emulator.isa.x86 import walk as w
from emulator.isa.x86.paging import LONG_MODE
from emulator.isa.x86.processor import Fault
from emulator.isa.x86.walk import FRAME_MASK, GuestContext
from emulator.memory import GuestMemory
from paravirt import abi, layout
from paravirt.mmu.code import CodePages
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW
from paravirt.modes.x86.shadow import X86Shadow
from paravirt.translator import Untouched
from tests.emulator.guest_image import GuestTables

MEMORY = 8 << 20
RIGHTS = w.PRESENT | w.WRITABLE | w.USER
PAGES = (0x4000_0000, 0x4000_1000, 0x4000_2000, 0x4020_0000, 0xFFFF_8000_0000_0000, 0x7F_0000_0000)
LARGE = 0x4040_0000


class Trees(GuestTables):
    """Tables of which some are out of reach for a while."""

    def __init__(self, memory: memoryview) -> None:
        super().__init__(memory)
        self.gone: dict[int, int] = {}
        """By the word that led to one of them, what was there."""


class Remembering:
    """Keeps every entry that was present and in reach of a root when the engine ran, as a processor may, for ever:
    until it is told that the entry was changed. That a page may be written from now on it sees when a store fails,
    if nobody has to tell it."""

    def __init__(self) -> None:
        self.shadow: X86Shadow
        self.kept: dict[int, int] = {}
        self.flushes = 0

    def set_root(self, physical: int) -> None:
        """Switch; what is kept of the tables stays."""
        self.root = physical

    def flush_tlb(self, changes: Sequence[tuple[int, int]] | None = None) -> None:
        """Forget these, or all."""
        self.flushes += 1
        if changes is None:
            self.kept.clear()
        for address, page in changes or ():
            if page == WHOLE_TABLE:
                self.kept = {at: entry for at, entry in self.kept.items() if at >> 12 != address >> 12}
                continue
            kept = self.kept.pop(address, None)
            if kept is not None and page >= 0:
                assert kept & FRAME_MASK == page, "the page that the entry mapped is named as well"

    def code_changed(self, address: int, size: int) -> None:
        """Nothing is executed here."""

    def run(self) -> None:
        """Keep all that can be reached, and see that nothing that was kept has become something else."""
        words, pool = self.shadow.pool.words, self.shadow.pool
        for address, entry in self.kept.items():
            now = words[address - pool.physical >> 3]
            gained = now ^ entry == w.WRITABLE == now & w.WRITABLE and not self.shadow.names_gained
            gained &= pool.level_of[address - pool.physical >> 12] == 1
            assert now == entry or gained, f"the entry at {address:#x} was {entry:#x}, is {now:#x}, and nobody said so"
        waiting = [(pool.table_in(self.root), 4)]
        while waiting:
            table, level = waiting.pop()
            for at in range(table << 9, table + 1 << 9):
                entry = words[at]
                if entry & 1:
                    self.kept[pool.physical + at * 8] = entry
                    below = pool.table_in(entry) if level > 1 else -1
                    if below >= 0:
                        waiting.append((below, level - 1))


@pytest.mark.parametrize("seed", range(12))
def test_no_entry_that_an_engine_may_keep_changes_without_its_being_told(seed: int) -> None:
    chance, engine, memory = random.Random(seed), Remembering(), GuestMemory(MEMORY)
    context = GuestContext(write_protect=True, no_execute=True)
    tables = Trees(memory.view)
    roots = [tables.root, tables.table()]
    context.root = roots[0]
    shadow = engine.shadow = X86Shadow(engine, memory, context, name_changes=True)
    shadow.names_gained = seed % 2 == 1
    code, window = (memoryview(bytearray(size)) for size in (64 << 12, layout.WINDOW_SIZE))
    places = layout.X86_64
    pages = CodePages(memory.view, code, window, Untouched(), lambda _: b"", lambda page: page, places, abi.X86_64)
    pages.attach(shadow)
    shadow.use(KERNEL_VIEW)
    for _ in range(200):
        act(chance, shadow, tables, roots, context)
        engine.run()
    assert engine.flushes
    assert shadow.form is LONG_MODE


def act(chance: random.Random, shadow: X86Shadow, tables: Trees, roots: list[int], context: GuestContext) -> None:
    """The guest, or the hypervisor for it, does something."""
    page, root = chance.choice(PAGES), chance.choice(roots)
    what = chance.randrange(13)
    if what > 10:  # a table of pages goes, and comes back with other contents
        place = tables.place(page, 2, root)
        gone = tables.gone.pop(place, 0) if not tables.words[place] & w.PRESENT else 0
        if gone and not gone & w.LARGE:
            frame = 0x30_0000 + chance.randrange(8) * 4096
            tables.words[((gone & FRAME_MASK) >> 3) + (page >> 12 & 511)] = frame | RIGHTS
        elif not gone:
            tables.gone[place] = tables.words[place]
        tables.words[place] = gone
    elif what == 10:  # many entries of one table
        for number in range(16):
            frame = 0x30_0000 + chance.randrange(8) * 4096
            tables.map(PAGES[0] + number * 4096, frame | RIGHTS | w.ACCESSED | w.DIRTY, root=root)
    elif what < 3:
        frame = 0x30_0000 + chance.randrange(8) * 4096
        tables.map(page, chance.choice((0, frame | RIGHTS, frame | w.PRESENT | w.USER, frame | RIGHTS)), root=root)
    elif what == 3:
        tables.map(LARGE, chance.choice((0, 0x20_0000 | RIGHTS | w.LARGE, 0x40_0000 | RIGHTS | w.LARGE)), 2, root)
    elif what == 4:
        context.root = root
        shadow.load_root()
    elif what == 5:
        shadow.use(chance.choice((KERNEL_VIEW, USER_VIEW)))
    elif what == 6:
        chance.choice((lambda: shadow.invalidate(page), shadow.flush_all))()
    elif what == 7:
        shadow.written(0x300 + chance.randrange(8))
    else:
        try:
            fetch = chance.random() < 0.4
            place = chance.choice((page, page, LARGE + 0x10_0000))
            shadow.fill(place, not fetch and chance.random() < 0.5, fetch)
        except Fault:
            pass
