"""Each technique lets the shadow follow the guest's tables as it says, and none lets an access go wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.isa.x86 import walk as w
from emulator.isa.x86.processor import Fault
from emulator.isa.x86.walk import FRAME_MASK
from paravirt import layout
from paravirt.mmu.eager import Eager
from paravirt.mmu.guard import TableGuard
from paravirt.mmu.techniques import TECHNIQUES
from paravirt.mmu.two_stage import TwoStage
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW
from tests.paravirt.model_mmu import MEMORY, ModelMmu

P, W, U, A, D = w.PRESENT, w.WRITABLE, w.USER, w.ACCESSED, w.DIRTY
PAGE, WINDOW = 0x4000_0000, 0x7F_4000_0000
FRAME, OTHER = 0x30_0000, 0x31_0000
RIGHTS = P | W | U | A | D


class Stored:
    """Words of guest memory that are written as the guest's code writes them: a closed frame is opened first, and where
    each store is followed, that happens behind it."""

    def __init__(self, mmu: GuestMmu, words: memoryview) -> None:
        self._mmu, self._words = mmu, words

    def __getitem__(self, at: int) -> int:
        return self._words[at]

    def __setitem__(self, at: int, value: int) -> None:
        guard = self._mmu.shadow.frames.guard
        if guard is not None and not at & 1:  # where a store of the hypervisor's goes is not said
            guard.written(at >> 9, at << 3)
        self._mmu.shadow.written(at >> 9)
        self._words[at] = value
        technique = self._mmu.shadow.technique
        if isinstance(technique, Eager):
            technique.follow()


class GuestMmu(ModelMmu):
    """A model whose guest stores into its tables by instructions."""

    def __init__(self, technique: str, **options: Any) -> None:
        super().__init__(**options)
        self.raw = self.tables.words
        self.shadow.technique = TECHNIQUES[technique](self.shadow)
        self.shadow.reset()  # the root was mirrored before
        self.tables.words = Stored(self, self.raw)  # type: ignore[assignment]

    @property
    def guarded(self) -> TableGuard:
        guard = self.shadow.frames.guard
        assert guard is not None
        return guard

    def expected(self, address: int, write: bool = False, fetch: bool = False) -> int | Fault:
        """As the model's, putting back only where tables are."""
        tables = slice(0x10_0000, 0x20_0000)
        before = bytes(self.memory[tables])
        try:
            return (
                w.Walker(self.raw, MEMORY, self.context)
                .walk(address, write, self.shadow.view == USER_VIEW, fetch)
                .frame
            )
        except Fault as fault:
            return fault
        finally:
            self.memory[tables] = before

    def check(self) -> None:
        """No frame with a page table is writable while it is closed."""
        super().check()
        guard = self.shadow.frames.guard
        if guard is None:
            return
        for _role, entry, pages in self.leaves():
            if entry & W and entry & U:
                first = (entry & FRAME_MASK) >> 12
                assert not guard.closed[first : first + pages].any(), f"{entry:#x} lets a closed frame be written"


def window_on_tables(mmu: GuestMmu) -> int:
    """The guest's own mapping of its last-level table for PAGE; returns the virtual address of PAGE's entry."""
    mmu.tables.map(PAGE, FRAME | RIGHTS)
    table = mmu.tables.place(PAGE) >> 9 << 12
    mmu.tables.map(WINDOW, table | RIGHTS)
    return WINDOW + (PAGE >> 12 & 511) * 8


def writable(mmu: GuestMmu, address: int) -> bool:
    found = mmu.walk(address)
    return found is not None and found.writable


FLUSHES: dict[str, Callable[[GuestMmu], None]] = {
    "one page": lambda mmu: mmu.shadow.invalidate(PAGE),
    "root": lambda mmu: mmu.shadow.load_root(),
    "everything": lambda mmu: mmu.shadow.flush_all(),
}


@pytest.mark.parametrize("flush", FLUSHES)
def test_lazy_is_stale_until_the_flush_and_right_and_protected_after_it(flush: str) -> None:
    mmu = GuestMmu("lazy")
    entry = window_on_tables(mmu)
    assert mmu.access(PAGE) == FRAME
    table = mmu.access(entry)
    assert not writable(mmu, entry), "a table in use is write-protected"
    opened = mmu.guarded.opened
    assert mmu.access(entry, write=True) == table
    fills = mmu.shadow.fills
    mmu.access(entry, write=True)
    assert mmu.shadow.fills == fills, "one exit opens it for all stores that follow"
    mmu.tables.map(PAGE, OTHER | RIGHTS)
    assert mmu.access(PAGE) == FRAME, "as a TLB may, it does not know yet"
    FLUSHES[flush](mmu)
    assert mmu.access(PAGE) == OTHER
    assert not writable(mmu, entry), "the table is protected again"
    assert mmu.guarded.opened == opened + 1


def test_a_table_written_in_several_places_loses_these_entries_and_no_others_wherever_the_first_store_went() -> None:
    for first in (0, 3, 511, -1):
        mmu = GuestMmu("lazy")
        for index in range(8):
            mmu.tables.map(PAGE + (index << 12), FRAME + (index << 12) | RIGHTS)
            mmu.access(PAGE + (index << 12))
        places = [mmu.shadow._leaf_of(PAGE + (index << 12)) for index in range(8)]
        pool, table = mmu.shadow.pool, places[0] >> mmu.shadow._unit
        source = pool.source[table]
        for index in (3, 5):
            mmu.raw[(source >> 3) + index] = 0
        assert pool.follow(table, source + (first << 3) if first >= 0 else -1)
        assert [bool(pool.words[at]) for at in places] == [index not in (3, 5) for index in range(8)]
        assert not pool.changed(table)
        assert not pool.follow(table, source + 24)


def test_eager_enters_no_page_of_the_kernels_into_user_codes_tables() -> None:
    mmu = GuestMmu("eager")
    kernels = PAGE + 0x1000
    mmu.tables.map(PAGE, FRAME | RIGHTS)
    for view in (KERNEL_VIEW, USER_VIEW):
        mmu.shadow.use(view)
        assert mmu.access(PAGE) == FRAME
    mmu.shadow.use(KERNEL_VIEW)
    mmu.tables.map(kernels, OTHER | (RIGHTS & ~U))  # in the table that both views mirror: each follows the store
    assert mmu.walk(kernels) is not None, "entered at once for the kernel"
    mmu.shadow.use(USER_VIEW)
    assert mmu.walk(kernels) is None
    with pytest.raises(Fault):
        mmu.access(kernels)


def test_lazy_follows_at_a_miss_that_goes_through_the_dirty_table() -> None:
    mmu = GuestMmu("lazy")
    entry = window_on_tables(mmu)
    mmu.access(PAGE)
    mmu.access(entry, write=True)
    mmu.tables.map(PAGE, OTHER | RIGHTS)
    mmu.tables.map(PAGE + 4096, FRAME | RIGHTS)
    assert mmu.access(PAGE + 4096) == FRAME
    assert mmu.access(PAGE) == OTHER
    assert not writable(mmu, entry)


def test_eager_is_never_stale_and_enters_the_new_translation_by_itself() -> None:
    mmu = GuestMmu("eager")
    entry = window_on_tables(mmu)
    assert mmu.access(PAGE) == FRAME
    mmu.access(entry, write=True)
    technique = mmu.shadow.technique
    assert isinstance(technique, Eager)
    assert technique.waits, "the store must run alone"
    mmu.tables.map(PAGE, OTHER | RIGHTS)  # and `follow` comes behind it
    assert not technique.waits
    assert not writable(mmu, entry), "the next store exits again"
    fills = mmu.shadow.fills
    assert mmu.access(PAGE) == OTHER
    assert mmu.shadow.fills == fills, "nothing missed"
    assert technique.entered_at_once


def test_a_table_that_was_freed_exits_once_and_then_is_data() -> None:
    for technique in ("lazy", "eager"):
        mmu = GuestMmu(technique)
        entry = window_on_tables(mmu)
        mmu.access(PAGE)
        mmu.access(entry)
        mmu.tables.map(PAGE, 0, 2)  # nothing leads to the table any more
        mmu.shadow.invalidate(PAGE)
        mmu.access(entry, write=True)
        mmu.tables.words[mmu.access(entry) >> 3] = 0x1234
        mmu.shadow.load_root()
        fills = mmu.shadow.fills
        for _ in range(3):
            mmu.access(entry, write=True)
            mmu.shadow.load_root()
        assert mmu.shadow.fills - fills <= 1
        assert mmu.guarded.released == 1


def test_a_table_that_was_let_go_mirrors_again_what_the_guest_has_there_when_it_is_linked() -> None:
    for technique in ("lazy", "eager"):
        mmu = GuestMmu(technique)
        entry = window_on_tables(mmu)
        mmu.access(PAGE)
        link = mmu.tables.entry(PAGE, 2)
        mmu.tables.map(PAGE, 0, 2)
        mmu.shadow.invalidate(PAGE)
        table = link & FRAME_MASK
        mmu.access(entry, write=True)
        mmu.tables.words[(table >> 3) + (PAGE >> 12 & 511)] = OTHER | RIGHTS
        mmu.shadow.load_root()
        mmu.tables.map(PAGE, link, 2)
        assert mmu.access(PAGE) == OTHER
        assert not writable(mmu, entry)
        mmu.access(entry, write=True)
        mmu.tables.map(PAGE, FRAME | RIGHTS)
        mmu.shadow.load_root()
        assert mmu.access(PAGE) == FRAME


def test_user_code_in_a_frame_that_becomes_a_table_cannot_write_it_unseen() -> None:
    mmu = GuestMmu("lazy")
    entry = window_on_tables(mmu)
    mmu.shadow.use(USER_VIEW)
    mmu.access(entry, fetch=True)
    mmu.access(PAGE)  # its table is mirrored now
    found = mmu.tlb.get(entry >> 12)
    assert found is None or not found.writable
    assert not writable(mmu, entry)
    mmu.access(entry, fetch=True)
    assert not writable(mmu, entry)
    mmu.access(entry, write=True)
    assert mmu.guarded.opened >= 1
    mmu.check()


def test_what_the_hypervisor_stores_for_the_guest_is_asked_about_again_when_a_table_is_protected_again() -> None:
    mmu = GuestMmu("lazy")
    window_on_tables(mmu)
    mmu.access(PAGE)
    asked: list[None] = []
    mmu.guarded.on_close = lambda: asked.append(None)
    mmu.tables.map(PAGE, OTHER | RIGHTS)
    mmu.shadow.load_root()
    assert asked


# -- whatever a guest does ----------------------------------------------------------------------------

PLACES = [PAGE + index * 4096 for index in range(3)] + [0xFFFF_8000_0000_0000, PAGE + (1 << 21), PAGE + (1 << 30)]
ENTRIES = [0, P | W | U, P | U, P | W, P | W | U | w.NO_EXECUTE, RIGHTS]
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("access"), st.sampled_from(PLACES), st.sampled_from([{}, {}, {"write": True}, {"fetch": True}])
        ),
        st.tuples(st.just("access"), st.sampled_from(PLACES), st.just({})),
        st.tuples(
            st.just("edit"), st.sampled_from(PLACES), st.tuples(st.sampled_from(ENTRIES), st.integers(0, 5)),
        ),
        st.tuples(st.just("link"), st.sampled_from(PLACES), st.booleans()),
        st.tuples(st.just("view"), st.sampled_from([KERNEL_VIEW, USER_VIEW]), st.none()),
    ),
    max_size=40,
)  # fmt: skip


@pytest.mark.parametrize("technique", TECHNIQUES)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, how=st.sampled_from(sorted(FLUSHES)), room=st.sampled_from([14, 64]))
def test_after_a_flush_every_access_is_as_the_tables_say(
    technique: str, steps: list[tuple[str, int, Any]], how: str, room: int
) -> None:
    mmu = GuestMmu(technique, places=replace(layout.X86_64, tables_size=room << 12, code_count=8))
    for index, place in enumerate(PLACES):
        mmu.tables.map(place, FRAME + index * 4096 | P | W | U)
    saved = {place: mmu.tables.entry(place, 2) for place in PLACES}
    for what, where, more in steps:
        if what == "view":
            mmu.shadow.use(where)
        elif what == "edit":
            entry, frame = more
            if mmu.tables.entry(where, 2) & 1:
                mmu.tables.map(where, FRAME + frame * 4096 | entry if entry else 0)
                flush(mmu, how)
        elif what == "link":
            mmu.tables.map(where, saved[where] if more else 0, 2)
            flush(mmu, how)
        else:
            access(mmu, where, more)
        mmu.check()


def flush(mmu: GuestMmu, how: str) -> None:
    if how == "one page":
        for place in PLACES:  # an upper entry was perhaps changed, which is many pages
            mmu.shadow.invalidate(place)
    elif how == "root":
        mmu.shadow.load_root()
    else:
        mmu.shadow.flush_all()


def access(mmu: GuestMmu, address: int, how: dict[str, bool]) -> None:
    expected = mmu.expected(address, **how)
    if isinstance(expected, Fault):
        with pytest.raises(Fault) as caught:
            mmu.access(address, **how)
        assert caught.value.error == expected.error
    else:
        assert mmu.source(mmu.access(address, **how)) == expected


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_full_pool_is_emptied_and_the_guest_does_not_notice(technique: str) -> None:
    mmu = GuestMmu(technique, places=replace(layout.X86_64, tables_size=16 << 12))
    emptied: list[None] = []
    forget = mmu.shadow.technique.forget
    mmu.shadow.technique.forget = lambda: (emptied.append(None), forget())[1]  # type: ignore[method-assign, func-returns-value]
    places = [PAGE + index * (1 << 21) for index in range(40)]
    for index, place in enumerate(places):
        mmu.tables.map(place, FRAME + index % 8 * 4096 | RIGHTS)
    for _ in range(3):
        for index, place in enumerate(places):
            assert mmu.access(place, write=True) == FRAME + index % 8 * 4096
            assert mmu.shadow.pool.used <= 16
        mmu.check()
    assert len(emptied) > 3


def test_two_stage_leaves_an_engines_own_entry_of_the_root_alone() -> None:
    mmu = GuestMmu("two-stage")
    mmu.tables.map(PAGE, FRAME | RIGHTS)
    mmu.access(PAGE)
    at = (mmu.root - layout.TABLES_BASE >> 3) + 257
    mmu.shadow.pool.words[at] = 1 << 38 | 0x63
    for flush in FLUSHES.values():
        flush(mmu)
        assert mmu.access(PAGE) == FRAME
        assert mmu.shadow.pool.words[at] == 1 << 38 | 0x63


def test_two_stage_counts_24_loads_for_each_cold_walk_and_forgets_at_each_flush() -> None:
    mmu = GuestMmu("two-stage")
    mmu.tables.map(PAGE, FRAME | RIGHTS)
    technique = mmu.shadow.technique
    assert isinstance(technique, TwoStage)
    mmu.access(PAGE)
    first = technique.loads
    mmu.shadow.load_root()
    assert mmu.access(PAGE) == FRAME
    assert technique.loads - first == 24
    assert technique.walks == 2
    assert technique.faults == 5, "four tables and the page were not mapped by stage 2"
    mmu.access(PAGE)
    assert technique.walks == 2, "the combined entry is cached"
