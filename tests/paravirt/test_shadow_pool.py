"""Shadow paging: large pages, a pool that is full, and code, which is never writable."""

from __future__ import annotations

from typing import Any

import pytest

from paravirt import layout
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW
from tests.paravirt.model_mmu import NX, ModelMmu
from tests.paravirt.shadowed_pages import (
    FRAME,
    HIGH,
    PAGE,
    PS,
    A,
    D,
    P,
    U,
    W,
    everything,
    faults,
    mapped,
    one_page,
    reload,
    tables,
)

# -- large pages --------------------------------------------------------------------------------------


def test_a_large_page_is_one_entry_until_code_lies_in_it() -> None:
    mmu = mapped(0x20_0000 | P | W | U | PS | A | D, level=2)
    assert mmu.access(PAGE + 0x5000, write=True) == 0x20_5000
    assert [pages for _, _, pages in mmu.leaves()] == [512]
    assert mmu.source(mmu.access(PAGE + 0x7000, fetch=True)) == 0x20_7000
    mmu.check()
    assert 512 not in [pages for _, _, pages in mmu.leaves()]
    assert mmu.access(PAGE + 0x5000, write=True) == 0x20_5000
    assert mmu.access(PAGE + 0x7000, write=True) == 0x20_7000
    mmu.check()
    assert mmu.source(mmu.access(PAGE + 0x7000, fetch=True)) == 0x20_7000
    mmu.check()


@pytest.mark.parametrize("flush", [one_page, reload, everything])
@pytest.mark.parametrize("split", [False, True])
def test_a_large_page_that_becomes_small_ones_and_back(flush: Any, split: bool) -> None:
    mmu = mapped(0x20_0000 | P | W | U | PS, level=2)
    mmu.access(PAGE, write=True, fetch=False)
    if split:
        mmu.access(PAGE + 0x1000, fetch=True)
    large = mmu.tables.entry(PAGE, 2)
    mmu.tables.map(PAGE, 0, 2)
    mmu.tables.map(PAGE, FRAME | P | W | U)
    flush(mmu)
    assert mmu.access(PAGE, write=True) == FRAME
    assert faults(mmu, PAGE + 0x2000) == 0
    mmu.tables.map(PAGE, large, 2)
    flush(mmu)
    assert mmu.access(PAGE, write=True) == 0x20_0000
    assert mmu.access(PAGE + 0x2000) == 0x20_2000


def test_a_gigabyte_page_is_mapped_piece_by_piece() -> None:
    mmu = mapped(P | W | U | PS, level=3)
    assert mmu.access(PAGE + 0x40_3000, write=True) == 0x40_3000
    assert mmu.source(mmu.access(PAGE + 0x60_1000, fetch=True)) == 0x60_1000
    assert mmu.tables.entry(PAGE, 3) & (A | D) == A | D
    mmu.tables.map(PAGE, 0, 3)
    mmu.shadow.invalidate(PAGE + 0x40_3000)
    assert faults(mmu, PAGE + 0x40_3000) == 0
    mmu.check()


def test_the_dirty_bit_of_a_large_page_is_set_before_it_is_written() -> None:
    mmu = mapped(0x20_0000 | P | W | U | PS, level=2)
    mmu.access(PAGE)
    assert mmu.tables.entry(PAGE, 2) & D == 0
    assert not any(entry & W for _, entry, _ in mmu.leaves())
    mmu.access(PAGE + 0x3000, write=True)
    assert mmu.tables.entry(PAGE, 2) & D


# -- the pool -----------------------------------------------------------------------------------------


def test_a_full_pool_starts_anew_and_everything_still_works() -> None:
    mmu = ModelMmu(places=tables(12))
    places = [PAGE + (index << 21) for index in range(40)] + [index << 39 for index in range(2, 20)]
    for index, place in enumerate(places):
        mmu.tables.map(place, FRAME + (index << 12) | P | W | U)
    for _ in range(2):
        for index, place in enumerate(places):
            assert mmu.access(place, write=True) == FRAME + (index << 12)
            mmu.check()


def test_a_guest_that_loads_more_roots_than_the_pool_holds_goes_on() -> None:
    mmu = mapped(FRAME | P | W | U, places=tables(12))
    directory = mmu.tables.words[mmu.tables.root >> 3]
    for number in range(30):
        root = mmu.tables.root if number % 5 == 4 else mmu.tables.table()
        mmu.tables.words[root >> 3] = directory
        mmu.context.root = root
        mmu.shadow.load_root()
        for view in (KERNEL_VIEW, USER_VIEW):
            mmu.shadow.use(view)
            assert mmu.access(PAGE, write=True) == FRAME


@pytest.mark.parametrize("used", range(12))
def test_the_hypervisors_own_mappings_find_room_in_a_full_pool(used: int) -> None:
    mmu = mapped(FRAME | P | W | U, places=tables(16))
    for index in range(used):
        place = PAGE + (index + 1 << 21)
        mmu.tables.map(place, FRAME | P | W | U)
        mmu.access(place)
    mmu.shadow.install_window()
    found = mmu.walk(layout_of_window())
    assert found is not None
    assert (found.writable, found.executable) == (False, True)
    mmu.shadow.use(USER_VIEW)
    mmu.access(PAGE, fetch=True)
    mmu.shadow.written(FRAME >> 12)
    assert FRAME >> 12 in mmu.forgotten
    mmu.shadow.descriptor_pages = {0x7_0000_0000 >> 12: layout.DESCRIPTORS_BASE}
    assert mmu.shadow.install_descriptors(0x7_0000_0000)
    mmu.check()


def layout_of_window() -> int:
    from paravirt import abi

    return abi.FIXUP_BASE


def test_the_window_is_in_the_kernel_view_only_and_the_shared_page_does_not_execute() -> None:
    from paravirt import abi

    mmu = ModelMmu()
    mmu.shadow.install_window()
    shared, fixups = mmu.walk(abi.SHARED_PAGE), mmu.walk(abi.FIXUP_BASE + abi.FIXUP_SIZE - 4096)
    assert shared is not None
    assert fixups is not None
    assert (shared.writable, shared.executable) == (True, False)
    assert (fixups.writable, fixups.executable) == (False, True)
    assert mmu.walk(abi.SHARED_PAGE + 4096) is None
    mmu.shadow.use(USER_VIEW)
    assert mmu.walk(abi.SHARED_PAGE) is None


# -- code ---------------------------------------------------------------------------------------------


def test_kernel_code_loses_every_writable_mapping_when_it_executes() -> None:
    mmu = mapped(FRAME | P | W | U)
    mmu.tables.map(HIGH, FRAME | P | W)
    mmu.tables.map(HIGH + 4096, FRAME | P | W)
    for address in (PAGE, HIGH, HIGH + 4096):
        mmu.access(address, write=True)
    mmu.shadow.use(USER_VIEW)
    mmu.access(PAGE, write=True)
    mmu.shadow.use(KERNEL_VIEW)
    mmu.access(HIGH, fetch=True)
    mmu.check()
    assert not any(entry & W for _, entry, _ in mmu.leaves())
    mmu.access(HIGH + 4096, write=True)
    mmu.check()
    found = mmu.walk(HIGH)
    assert found is None or not found.executable, "the copy left use"


@pytest.mark.parametrize("kernel_writes", [False, True])
def test_user_code_is_forgotten_before_it_is_written_through_another_mapping(kernel_writes: bool) -> None:
    mmu = mapped(FRAME | P | U)
    mmu.tables.map(HIGH, FRAME | P | W | (0 if kernel_writes else U) | NX)
    mmu.access(HIGH, write=True)
    mmu.shadow.use(USER_VIEW)
    mmu.access(PAGE, fetch=True)
    mmu.check()
    assert mmu.forgotten == []
    mmu.shadow.use(KERNEL_VIEW if kernel_writes else USER_VIEW)
    mmu.access(HIGH, write=True)
    mmu.check()
    assert mmu.forgotten == [FRAME >> 12]
    mmu.shadow.use(USER_VIEW)
    mmu.access(PAGE, fetch=True)
    mmu.check()
