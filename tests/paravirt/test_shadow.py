"""Shadow paging: what the guest's tables say, and no longer than until its flush, wherever its tables lie."""

from __future__ import annotations

from typing import Any

import pytest

from emulator.isa.x86 import walk as w
from emulator.isa.x86.processor import Fault
from paravirt import layout
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW
from tests.emulator.guest_image import USER_TABLE
from tests.paravirt.model_mmu import MEMORY, NX, ModelMmu
from tests.paravirt.shadowed_pages import (
    FRAME,
    HIGH,
    OTHER,
    PAGE,
    A,
    D,
    G,
    P,
    U,
    W,
    everything,
    faults,
    mapped,
    one_page,
    reload,
)

# -- accessed and dirty bits, rights ------------------------------------------------------------------


def test_a_read_sets_accessed_bits_and_a_write_the_dirty_bit_of_the_leaf() -> None:
    mmu = mapped(FRAME | P | W | U)
    assert mmu.access(PAGE) == FRAME
    assert [mmu.tables.entry(PAGE, level) & (A | D) for level in (4, 3, 2, 1)] == [A, A, A, A]
    assert mmu.access(PAGE, write=True) == FRAME
    assert [mmu.tables.entry(PAGE, level) & (A | D) for level in (4, 3, 2, 1)] == [A, A, A, A | D]


def test_bits_that_the_guest_cleared_are_set_again_after_its_flush() -> None:
    mmu = mapped(FRAME | P | W | U)
    mmu.access(PAGE, write=True)
    for bits in (D, A | D):
        mmu.tables.map(PAGE, mmu.tables.entry(PAGE) & ~bits)
        mmu.shadow.invalidate(PAGE)
        mmu.access(PAGE)
        assert mmu.tables.entry(PAGE) & (A | D) == A
        mmu.access(PAGE, write=True)
        assert mmu.tables.entry(PAGE) & (A | D) == A | D


@pytest.mark.parametrize("view", [KERNEL_VIEW, USER_VIEW])
@pytest.mark.parametrize(
    ("entry", "access", "kernel", "user"),
    [
        (P | W | U, {"write": True}, None, None),
        (P | U, {"write": True}, 3, 7),
        (P | W, {}, None, 5),
        (P | W | U | NX, {"fetch": True}, 0x11, 0x15),
        (0, {}, 0, 4),
        (0, {"write": True}, 2, 6),
        (P | U | 1 << 40, {}, 9, 0xD),
    ],
    ids=["writable", "read-only", "supervisor", "no execute", "absent", "absent write", "reserved"],
)
def test_rights_are_the_guests_in_both_views(
    view: int, entry: int, access: dict[str, bool], kernel: int | None, user: int | None
) -> None:
    mmu = mapped(FRAME | entry if entry else 0)
    mmu.shadow.use(view)
    error = user if view == USER_VIEW else kernel
    if error is None:
        assert mmu.access(PAGE, **access) == FRAME
    else:
        assert faults(mmu, PAGE, **access) == error


def test_read_only_pages_are_written_while_write_protection_is_off_and_not_afterwards() -> None:
    mmu = mapped(FRAME | P | U)
    mmu.context.write_protect = False
    mmu.shadow.flush_all()
    assert mmu.access(PAGE, write=True) == FRAME
    mmu.context.write_protect = True
    mmu.shadow.flush_all()
    assert faults(mmu, PAGE, write=True) == 3


def test_the_user_view_never_maps_supervisor_pages() -> None:
    mmu = ModelMmu()
    for index in range(64):
        mmu.tables.map(HIGH + index * 4096, FRAME + index * 4096 | P | W | A | D)
        mmu.tables.map(PAGE + index * 4096, OTHER + index * 4096 | P | W | A | D | (U if index % 2 else 0))
    for index in range(64):  # misses, so that tables are filled ahead
        mmu.access(HIGH + index * 4096)
        mmu.access(PAGE + index * 4096, write=True)
    mmu.shadow.use(USER_VIEW)
    for index in range(64):
        assert faults(mmu, HIGH + index * 4096) == 5
        if index % 2:
            assert mmu.access(PAGE + index * 4096) == OTHER + index * 4096
        else:
            assert faults(mmu, PAGE + index * 4096) == 5
    users = {entry & w.FRAME_MASK for role, entry, _ in mmu.leaves() if role == USER_VIEW}
    assert users == {OTHER + index * 4096 for index in range(1, 64, 2)}


@pytest.mark.parametrize("flush", [one_page, reload, everything])
@pytest.mark.parametrize("after", [0, FRAME | P | U, OTHER | P | W | U, FRAME | P | W | U | NX])
@pytest.mark.parametrize("view", [KERNEL_VIEW, USER_VIEW])
def test_a_changed_entry_is_gone_after_the_guests_flush(flush: Any, after: int, view: int) -> None:
    mmu = mapped(FRAME | P | W | U)
    mmu.shadow.use(view)
    assert mmu.access(PAGE, write=True) == FRAME
    mmu.tables.map(PAGE, after)
    assert mmu.access(PAGE, write=True) == FRAME, "nothing is noticed before the flush"
    flush(mmu)
    for access in ({"write": True}, {}, {"fetch": True}):
        expected = mmu.expected(PAGE, **access)
        if isinstance(expected, int):
            assert mmu.source(mmu.access(PAGE, **access)) == expected
        else:
            assert faults(mmu, PAGE, **access) == expected.error


@pytest.mark.parametrize("level", [2, 3, 4])
@pytest.mark.parametrize("flush", [one_page, reload, everything])
def test_a_changed_upper_entry_is_gone_after_the_guests_flush(level: int, flush: Any) -> None:
    mmu = mapped(FRAME | P | W | U)
    mmu.access(PAGE, write=True)
    before = mmu.tables.entry(PAGE, level)
    for entry, error in ((0, 2), (before & ~W, 3)):
        mmu.tables.map(PAGE, entry, level)
        flush(mmu)
        assert faults(mmu, PAGE, write=True) == error
        mmu.tables.map(PAGE, before, level)
        flush(mmu)
        assert mmu.access(PAGE, write=True) == FRAME


def test_global_pages_survive_a_root_load_and_not_the_flush_of_everything() -> None:
    mmu = mapped(FRAME | P | W | U | G)
    mmu.tables.map(PAGE + 4096, FRAME | P | W | U)
    mmu.tables.map(HIGH, FRAME | P | W | G)
    for address in (PAGE, PAGE + 4096, HIGH):
        mmu.access(address)
        mmu.tables.map(address, 0)
    mmu.shadow.load_root()
    assert mmu.access(HIGH) == FRAME
    assert faults(mmu, PAGE + 4096) == 0
    mmu.shadow.flush_all()
    for address in (PAGE, PAGE + 4096, HIGH):
        assert faults(mmu, address) == 0


@pytest.mark.parametrize("view", [KERNEL_VIEW, USER_VIEW])
@pytest.mark.parametrize("between", [0, 300])
def test_a_global_page_that_was_invalidated_is_gone_in_every_address_space(view: int, between: int) -> None:
    mmu = mapped(FRAME | P | W | U | G)
    first, second = mmu.tables.root, mmu.tables.table()
    mmu.tables.map(PAGE, OTHER | P | W | U | G, root=second)
    for root, frame in ((first, FRAME), (second, OTHER)):
        mmu.context.root = root
        mmu.shadow.load_root()
        mmu.shadow.use(view)
        assert mmu.access(PAGE) == frame
    mmu.tables.map(PAGE, OTHER + 4096 | P | W | U | G, root=first)  # while the second is in use
    mmu.shadow.invalidate(PAGE)
    for number in range(between):
        mmu.shadow.invalidate(HIGH + number * 4096)
    mmu.context.root = first
    mmu.shadow.load_root()
    assert mmu.access(PAGE) == OTHER + 4096


@pytest.mark.parametrize("view", [KERNEL_VIEW, USER_VIEW])
def test_a_page_that_is_invalidated_again_and_again_is_gone_in_every_address_space_each_time(view: int) -> None:
    mmu = mapped(FRAME | P | W | U | G)
    first, second = mmu.tables.root, mmu.tables.table()
    mmu.tables.map(PAGE, OTHER | P | W | U | G, root=second)

    def enter(root: int) -> int:
        mmu.context.root = root
        mmu.shadow.load_root()
        mmu.shadow.use(view)
        return mmu.access(PAGE)

    assert (enter(first), enter(second)) == (FRAME, OTHER)
    for turn in range(1, 7):
        frame = FRAME + turn * 4096
        mmu.tables.map(PAGE, frame | P | W | U | G, root=first)  # while the second is in use
        for _ in range(turn % 3 + 1):
            mmu.shadow.invalidate(PAGE)
        assert enter(first) == frame
        mmu.tables.map(PAGE, frame | P | W | U | G, root=second)
        mmu.shadow.invalidate(PAGE)
        mmu.shadow.invalidate(PAGE)
        assert enter(second) == frame


def test_every_one_of_many_invalidations_counts() -> None:
    mmu = mapped(FRAME | P | W | U)
    for number in range(600):
        frame = FRAME + number % 5 * 4096
        mmu.tables.map(PAGE, frame | P | W | U)
        mmu.shadow.invalidate(PAGE)
        assert mmu.access(PAGE) == frame


def test_two_address_spaces_see_their_own_pages_whenever_they_are_loaded() -> None:
    mmu = mapped(FRAME | P | W | U)
    first, second = mmu.tables.root, mmu.tables.table()
    mmu.tables.map(PAGE, OTHER | P | W | U, root=second)
    for root, frame in ((first, FRAME), (second, OTHER)) * 3:
        mmu.context.root = root
        mmu.shadow.load_root()
        for view in (KERNEL_VIEW, USER_VIEW):
            mmu.shadow.use(view)
            assert mmu.access(PAGE, write=True) == frame


def test_a_table_that_becomes_another_table_is_looked_at_again() -> None:
    mmu = mapped(FRAME | P | W | U)
    mmu.access(PAGE)
    table = mmu.tables.entry(PAGE, 2) & w.FRAME_MASK
    mmu.tables.map(PAGE, 0, 2)
    mmu.shadow.load_root()
    assert faults(mmu, PAGE) == 0
    mmu.tables.words[(table >> 3) + (PAGE >> 12 & 511)] = OTHER | P | W | U
    mmu.tables.map(PAGE, table | USER_TABLE, 2)
    assert mmu.access(PAGE, write=True) == OTHER


def test_an_entry_that_becomes_present_needs_no_flush() -> None:
    mmu = mapped(0)
    assert faults(mmu, PAGE) == 0
    mmu.tables.map(PAGE, FRAME | P | U)
    assert mmu.access(PAGE) == FRAME


# -- tables at odd places -----------------------------------------------------------------------------


def test_tables_outside_memory_are_reserved_bit_faults() -> None:
    for level in (2, 3, 4):
        mmu = mapped(FRAME | P | W | U)
        mmu.tables.map(PAGE, MEMORY * 2 | USER_TABLE, level)
        assert faults(mmu, PAGE) == 9
    mmu.context.root = MEMORY * 4
    mmu.shadow.load_root()
    assert faults(mmu, PAGE) == 9


def test_a_table_that_maps_itself_shows_its_own_entries() -> None:
    mmu = mapped(FRAME | P | W | U)
    root = mmu.tables.root
    mmu.tables.words[(root >> 3) + 511] = root | USER_TABLE
    own = 0xFFFF_FFFF_FFFF_F000
    assert mmu.access(own, write=True) == root
    leaf_table = 0xFFFF_FF80_0000_0000 + (PAGE >> 12 << 3)
    assert mmu.access(leaf_table) == mmu.tables.entry(PAGE, 2) & w.FRAME_MASK
    assert mmu.access(PAGE) == FRAME
    mmu.check()


def test_a_page_outside_memory_is_the_bus_and_code_there_is_undefined() -> None:
    mmu = mapped(0x8000_0000 | P | W | U)
    assert mmu.access(PAGE, write=True) == 0x8000_0000
    with pytest.raises(Fault) as caught:
        mmu.access(PAGE, fetch=True)
    assert caught.value.vector == 6
    mmu.tables.map(PAGE, 0x8_0000_0000 | P | W | U)
    mmu.shadow.invalidate(PAGE)
    assert mmu.access(PAGE) == layout.OPEN_BUS
