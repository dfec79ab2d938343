"""Shadow paging: what the guest's tables say, no sooner forgotten than a TLB may, and never writable code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.isa.x86 import walk as w
from emulator.isa.x86.processor import Fault
from paravirt import layout
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW
from tests.emulator.guest_image import USER_TABLE
from tests.paravirt.model_mmu import MEMORY, NX, ModelMmu

A, D, P, W, U, G, PS = w.ACCESSED, w.DIRTY, w.PRESENT, w.WRITABLE, w.USER, w.GLOBAL, w.LARGE
PAGE = 0x4000_0000
HIGH = 0xFFFF_8000_0000_0000
FRAME, OTHER = 0x30_0000, 0x31_0000


def mapped(entry: int, level: int = 1, **options: Any) -> ModelMmu:
    mmu = ModelMmu(**options)
    mmu.tables.map(PAGE, entry, level)
    return mmu


def tables(count: int) -> layout.Layout:
    """A hypervisor that has room for so many shadow tables."""
    return replace(layout.X86_64, tables_size=count << 12)


def faults(mmu: ModelMmu, address: int, **access: bool) -> int:
    """Error code of the guest's page fault."""
    with pytest.raises(Fault) as caught:
        mmu.access(address, **access)
    assert caught.value.vector == 14
    assert caught.value.address == address
    assert caught.value.error is not None
    return caught.value.error


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


# -- staleness ----------------------------------------------------------------------------------------


def reload(mmu: ModelMmu) -> None:
    mmu.shadow.load_root()


def everything(mmu: ModelMmu) -> None:
    mmu.shadow.flush_all()


def one_page(mmu: ModelMmu) -> None:
    mmu.shadow.invalidate(PAGE)


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


ACCESSES = st.tuples(st.just("access"), st.integers(0, 7), st.sampled_from(["read", "write", "fetch"]))
RIGHTS = st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans())
EDITS = st.tuples(
    st.just("edit"), st.integers(0, 7), st.integers(0, 3), RIGHTS, st.sampled_from(["page", "root", "all"])
)
UPPER = st.tuples(
    st.just("upper"), st.sampled_from([2, 3, 4]), st.booleans(), st.booleans(), st.sampled_from(["root", "all"])
)
VIEWS = st.tuples(st.just("view"), st.sampled_from([KERNEL_VIEW, USER_VIEW]))
PROTECT = st.tuples(st.just("protect"), st.booleans())
STORES = st.tuples(st.just("store"), st.integers(0, 3))
LARGE_PAGES = st.tuples(st.just("large"), st.booleans(), st.sampled_from(["root", "all"]))
PLACES = [PAGE + index * 4096 for index in range(4)] + [HIGH + index * 4096 for index in range(4)]


def perform(mmu: ModelMmu, step: Any) -> None:
    """One step of a random guest; every access must reach what the guest's tables say."""
    match step:
        case ("access", number, kind):
            access = {"write": kind == "write", "fetch": kind == "fetch"}
            address = PLACES[number]
            expected = mmu.expected(address, **access)
            try:
                found: int | Fault = mmu.source(mmu.access(address, **access))
            except Fault as fault:
                found = fault
            if isinstance(expected, Fault):
                assert isinstance(found, Fault), f"{address:#x} {kind} gives {found:#x} instead of {expected}"
                assert (found.vector, found.error) == (expected.vector, expected.error)
            else:
                assert found == expected
        case ("edit", number, frame, (present, writable, user, execute), how):
            entry = FRAME + frame * 4096 | W * writable | U * user | (0 if execute else NX)
            address = PLACES[number]
            if mmu.tables.entry(address, 2) & PS:
                return
            mmu.tables.map(address, entry | P if present else 0)
            flush(mmu, how, address)
        case ("upper", level, writable, execute, how):
            at = mmu.tables.place(PAGE, level)
            word = mmu.tables.words[at]
            mmu.tables.words[at] = word & ~(W | NX) | W * writable | (0 if execute else NX)
            flush(mmu, how, PAGE)
        case ("large", on, how):
            at = mmu.tables.place(PAGE, 2)
            small = 0x18_0000
            mmu.tables.words[at] = 0x20_0000 | P | W | U | PS if on else small | USER_TABLE
            flush(mmu, how, PAGE)
        case ("view", view):
            mmu.shadow.use(view)
        case ("protect", on):
            mmu.context.write_protect = on
            mmu.shadow.flush_all()
        case ("store", frame):
            mmu.shadow.written((FRAME >> 12) + frame)
            at = FRAME + frame * 4096
            mmu.memory[at] = mmu.memory[at] + 1 & 0xFF


def flush(mmu: ModelMmu, how: str, address: int) -> None:
    if how == "page":
        mmu.shadow.invalidate(address)
    elif how == "root":
        mmu.shadow.load_root()
    else:
        mmu.shadow.flush_all()


STEPS = st.lists(
    st.one_of(ACCESSES, ACCESSES, ACCESSES, EDITS, UPPER, VIEWS, PROTECT, STORES, LARGE_PAGES), max_size=40
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, guard=st.booleans(), count=st.sampled_from([12, 20, 64]))
def test_whatever_a_guest_does_its_accesses_are_right_and_its_code_is_not_writable(
    steps: list[Any], guard: bool, count: int
) -> None:
    mmu = ModelMmu(guard=guard, places=replace(tables(count), code_count=8))
    mmu.tables.map(PAGE, 0x18_0000 | USER_TABLE, 2)
    for number, place in enumerate(PLACES):
        mmu.tables.map(place, FRAME + (number & 3) * 4096 | P | W | U)
    for step in steps:
        perform(mmu, step)
        mmu.check()
