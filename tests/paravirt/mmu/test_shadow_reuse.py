"""Page tables that a guest frees and allocates again: no shadow of what they were survives the next load of a root."""

from __future__ import annotations

from collections.abc import Sequence

from emulator.isa.x86.walk import GuestContext
from emulator.memory import GuestMemory
from paravirt import layout
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW
from paravirt.modes.x86.shadow import X86Shadow

PRESENT_WRITABLE_USER_ACCESSED_DIRTY = 0x67
FRAME = 0x000F_FFFF_FFFF_F000
ADDRESS = 0x40_0000
ROOT_A, ROOT_B, LEVEL3, LEVEL2, LEVEL1 = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
OLD, NEW = 0x8000, 0xA000


class QuietEngine:
    """Counts nothing, walks nothing."""

    def set_root(self, physical: int) -> None: ...

    def flush_tlb(self, changes: Sequence[tuple[int, int]] | None = None) -> None: ...

    def code_changed(self, address: int, size: int) -> None: ...


class NoCode:
    """No page is code."""

    def activate(self, address: int, frame: int, at: int) -> int:
        raise AssertionError("nothing is executed here")

    def copy_at(self, physical: int) -> memoryview:
        raise AssertionError("nothing is executed here")

    def deactivate(self, frame: int) -> None: ...

    def forget_mappings(self) -> None: ...

    @property
    def has_fixups(self) -> bool:
        return False


def entry(memory: GuestMemory, table: int, index: int, target: int) -> None:
    memory.write(table + 8 * index, 8, target | PRESENT_WRITABLE_USER_ACCESSED_DIRTY)


def guest() -> tuple[GuestMemory, GuestContext, X86Shadow]:
    """Two pages from OLD on, mapped at ADDRESS by ROOT_A; ROOT_B is empty."""
    memory, context = GuestMemory(1 << 20), GuestContext()
    context.root = ROOT_A
    shadow = X86Shadow(QuietEngine(), memory, context)
    shadow.attach(NoCode())
    for table, below in ((ROOT_A, LEVEL3), (LEVEL3, LEVEL2)):
        entry(memory, table, 0, below)
    entry(memory, LEVEL2, 2, LEVEL1)
    map_pages(memory, OLD)
    return memory, context, shadow


def map_pages(memory: GuestMemory, first: int) -> None:
    for page in range(2):
        entry(memory, LEVEL1, page, first + page * 4096)


def shadowed(shadow: X86Shadow, address: int) -> int | None:
    """The frame that the engine would reach at `address`, by the tables made for it."""
    table = shadow._current[0]
    for shift in (39, 30, 21, 12):
        word = int(shadow._words[(table << 9) + (address >> shift & 511)])
        if not word & 1:
            return None
        table = ((word & FRAME) - layout.TABLES_BASE) >> 12
    return word & FRAME


def load(context: GuestContext, shadow: X86Shadow, root: int) -> None:
    context.root = root
    shadow.load_root()


def test_a_tree_built_anew_of_the_same_frames_shows_nothing_of_the_old_one() -> None:
    for view in (KERNEL_VIEW, USER_VIEW):
        memory, context, shadow = guest()
        shadow.use(view)
        for page in range(2):
            shadow.fill(ADDRESS + page * 4096, True, False)
        assert shadowed(shadow, ADDRESS + 4096) == OLD + 4096
        map_pages(memory, NEW)
        entry(memory, ROOT_B, 0, LEVEL3)
        load(context, shadow, ROOT_B)
        shadow.fill(ADDRESS, True, False)
        assert shadowed(shadow, ADDRESS) == NEW
        assert shadowed(shadow, ADDRESS + 4096) in (None, NEW + 4096)


def test_a_table_linked_by_one_root_is_looked_at_when_another_root_that_shares_it_is_loaded() -> None:
    memory, context, shadow = guest()
    entry(memory, ROOT_B, 0, LEVEL3)
    other = 0x6000
    entry(memory, LEVEL2, 3, other)
    entry(memory, other, 0, 0xC000)
    load(context, shadow, ROOT_B)
    shadow.fill(ADDRESS + 0x20_0000, True, False)  # B links LEVEL3 and LEVEL2
    load(context, shadow, ROOT_A)
    shadow.fill(ADDRESS, True, False)  # A links LEVEL1, below what B has linked
    map_pages(memory, NEW)
    load(context, shadow, ROOT_B)
    assert shadowed(shadow, ADDRESS) in (None, NEW)


def test_tables_of_an_address_space_that_is_gone_are_not_looked_at_any_more() -> None:
    memory, context, shadow = guest()
    shadow.use(USER_VIEW)
    shadow.fill(ADDRESS, True, False)
    root = shadow._current[0]
    entry(memory, LEVEL2, 3, LEVEL1)  # the same table at a second place
    shadow.fill(ADDRESS + 0x20_0000, True, False)
    upper = next(iter(shadow.pool.below[next(iter(shadow.pool.below[root]))]))
    assert len(shadow.pool.below[upper]) == 1
    memory.write(LEVEL2 + 8 * 2, 8, 0)
    load(context, shadow, ROOT_A)
    assert len(shadow.pool.below[upper]) == 1, "it is linked still"
    memory.write(LEVEL2 + 8 * 3, 8, 0)
    load(context, shadow, ROOT_A)
    assert not shadow.pool.below[upper]
    memory.write(ROOT_A, 8, 0)
    load(context, shadow, ROOT_A)
    assert not shadow.pool.below[root]
