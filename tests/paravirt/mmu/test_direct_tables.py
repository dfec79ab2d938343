"""Real page tables of a guest: types, counts, roll-back, refusals; after each step the counts are counted anew."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.isa.entries import format_of
from paravirt.mmu.descriptor_pages import DescriptorPages
from paravirt.mmu.direct_tables import DirectTables
from paravirt.mmu.frame_types import (
    DESCRIPTORS,
    WRITABLE,
    FrameTable,
    Refusal,
    Refused,
)
from tests.paravirt.mmu.direct_guest import (
    COUNT,
    FIRST,
    L1,
    L2,
    L3,
    L4,
    LARGE,
    NX,
    RW,
    A,
    D,
    G,
    Made,
    P,
    U,
    W,
    chain,
    refused,
)


def test_a_root_makes_tables_of_all_below_it_and_leads_to_machine_frames() -> None:
    made = Made()
    chain(made)
    made.tables.use_root(made.machine(4))
    made.roots = [made.machine(4)]
    assert [made.kind(number) for number in (1, 2, 3, 4, 100)] == [L1, L2, L3, L4, WRITABLE]
    assert made.get(1, 7) >> 12 & 0xFF_FFFF == made.machine(107)
    assert made.get(1, 7) & U  # the guest's kernel runs at level 3
    assert made.tables.read(made.machine(1), 7) == 107 << 12 | RW
    made.check()
    made.tables.leave_root(made.machine(4))
    made.roots = []
    made.check()
    assert not made.frames.uses_array.any()
    assert not made.frames.refs_array.any()
    assert made.get(1, 7) == 107 << 12 | RW
    assert made.get(4, 0) == 3 << 12 | RW


def test_guest_frames_in_any_order_of_the_machines_are_translated_both_ways() -> None:
    made = Made(order=list(reversed(range(COUNT))))
    chain(made)
    made.pin(4, L4)
    assert made.get(1, 3) >> 12 & 0xFF_FFFF == FIRST + 2 * COUNT - 1 - 103
    made.check()
    made.tables.unpin(made.machine(4))
    assert made.get(1, 3) == 103 << 12 | RW


@pytest.mark.parametrize("bad", [0, 11])
def test_a_table_that_is_refused_part_way_gives_everything_back(bad: int) -> None:
    made = Made()
    chain(made)
    made.put(2, 1, 5 << 12 | RW)  # a second table of pages, which is found after the first was taken
    for index in range(12):
        made.put(5, index, (200 + index) << 12 | RW)
    made.put(5, bad, made.other.first << 12 | RW)
    before = bytes(made.domain.memory)
    caught = refused(Refusal.FOREIGN, made.pin, 4, L4)
    assert caught.frame == made.other.first
    assert bytes(made.domain.memory) == before
    assert not made.frames.uses_array.any()
    assert not made.frames.refs_array.any()
    made.put(5, bad, 0)
    made.pin(4, L4)
    made.check()


@pytest.mark.parametrize("few", [True, False])
def test_a_writable_mapping_of_a_table_is_refused_whole_and_single(few: bool) -> None:
    made = Made()
    chain(made)
    made.pin(4, L4)
    refused(Refusal.WRITABLE_TABLE, made.store, 1, 300, 2 << 12 | RW)
    made.store(1, 300, 2 << 12 | P)
    for index in range(2 if few else 30):
        made.put(6, index, (1 if index == 1 else 300 + index) << 12 | RW)
    refused(Refusal.WRITABLE_TABLE, made.pin, 6, L1)
    made.put(6, 1, 6 << 12 | RW)  # itself
    refused(Refusal.WRITABLE_TABLE, made.pin, 6, L1)
    made.check()


def test_a_frame_that_is_mapped_writable_becomes_no_table() -> None:
    made = Made()
    chain(made)
    made.pin(4, L4)
    refused(Refusal.OTHER_TYPE, made.pin, 100, L1)
    refused(Refusal.OTHER_TYPE, made.store, 2, 1, 100 << 12 | RW)
    made.store(1, 0, 100 << 12 | P)
    assert not made.frames.flush_due
    made.pin(100, L1)
    assert made.frames.flush_due  # a TLB may still have it as writable
    made.frames.flushed()
    made.check()
    refused(Refusal.OTHER_TYPE, made.pin, 1, L2)


def test_a_frame_left_before_the_last_flush_owes_none() -> None:
    made = Made()
    chain(made)
    made.pin(4, L4)
    made.store(1, 0, 0)
    made.frames.flushed()
    made.pin(100, L1)
    assert not made.frames.flush_due
    made.tables.unpin(made.machine(100))
    made.store(1, 0, 100 << 12 | RW)  # it was a table, and the processor may have kept that it led somewhere
    assert made.frames.flush_due


def test_frames_of_the_hypervisor_of_others_and_of_nobody_are_refused() -> None:
    made = Made()
    chain(made)
    made.pin(4, L4)
    for frame, reason in (
        (FIRST, Refusal.FOREIGN),
        (made.other.first + 7, Refusal.FOREIGN),
        (FIRST + 3 * COUNT, Refusal.FOREIGN),
        (FIRST + 4 * COUNT, Refusal.NO_FRAME),
        (COUNT, Refusal.NO_FRAME),
    ):
        for bits in (P, RW):
            refused(reason, made.store, 1, 9, frame << 12 | bits)
        refused(reason, made.store, 4, 1, frame << 12 | RW)
        refused(reason, made.tables.pin, frame, L1)
        refused(reason, made.tables.store, frame, 0, 0)
        refused(reason, made.tables.use_root, frame)
        refused(reason, made.tables.read, frame, 0)
    made.check()


def test_an_own_machine_frame_may_be_named_as_it_is() -> None:
    made = Made()
    chain(made)
    made.pin(4, L4)
    entry = made.get(1, 5)
    made.store(1, 5, (entry & ~(W | U)))
    assert made.tables.read(made.machine(1), 5) == 105 << 12 | P
    made.check()


def test_accessed_and_dirty_of_the_processor_survive_where_asked_and_change_no_count() -> None:
    made = Made()
    chain(made)
    made.pin(4, L4)
    made.put(1, 2, made.get(1, 2) | A | D)
    made.tables.store(made.machine(1), 2, 102 << 12 | P, keep_marks=True)
    assert made.tables.read(made.machine(1), 2) == 102 << 12 | P | A | D
    made.store(1, 2, 102 << 12 | P)
    assert made.tables.read(made.machine(1), 2) == 102 << 12 | P
    made.check()


def test_kept_and_reserved_bits_and_wrong_kinds_are_malformed() -> None:
    made = Made()
    chain(made)
    made.pin(4, L4)
    for level, entry in ((1, 1 << 52), (1, 1 << 58), (2, 1 << 52), (4, LARGE), (3, 1 << 58)):
        refused(Refusal.MALFORMED, made.store, level, 9, entry | 30 << 12 | RW)
    for index in range(12):
        made.put(8, index, (300 + index) << 12 | RW)
    made.put(8, 11, 311 << 12 | RW | 1 << 52)
    refused(Refusal.MALFORMED, made.pin, 8, L1)
    made.store(1, 400, U | G | P | 120 << 12)
    assert made.get(1, 400) & (U | G) == U
    assert made.tables.read(made.machine(1), 400) == U | G | P | 120 << 12
    made.check()


def test_what_is_absent_may_hold_anything() -> None:
    made = Made()
    chain(made)
    made.pin(4, L4)
    for level in (1, 2, 3, 4):
        made.store(level, 200, 0xFFFF_FFFF_FFFF_FFFE)
        assert made.tables.read(made.machine(level), 200) == 0xFFFF_FFFF_FFFF_FFFE
    made.check()


def test_the_hypervisors_slots_are_its_own() -> None:
    made = Made()
    made.tables.window[257] = 0x1234_5000 | P
    chain(made)
    made.put(4, 260, 300 << 12 | RW)
    made.pin(4, L4)
    assert made.get(4, 257) == 0x1234_5000 | P
    assert made.get(4, 260) == 0
    for index in (256, 271):
        refused(Refusal.RESERVED, made.store, 4, index, 300 << 12 | RW)
        refused(Refusal.RESERVED, made.store, 4, index, 0)
    made.tables.unpin(made.machine(4))
    assert made.get(4, 257) == 0
    made.check()


def test_a_table_may_be_read_through_itself_and_not_written() -> None:
    made = Made()
    chain(made)
    made.put(4, 300, 4 << 12 | P)
    made.pin(4, L4)
    made.check()
    refused(Refusal.LINEAR, made.store, 4, 301, 4 << 12 | RW)
    made.store(4, 300, 0)
    made.store(4, 300, 4 << 12 | P)
    made.check()
    made.tables.unpin(made.machine(4))
    assert not made.frames.refs_array.any()


def test_linear_mappings_of_others_keep_them_tables_and_make_no_chain() -> None:
    made = Made()
    for root in (4, 5, 6):
        made.put(root, 9, 0)
        made.pin(root, L4)
    made.store(4, 300, 5 << 12 | P)
    made.tables.unpin(made.machine(5))
    assert made.kind(5) == L4
    assert made.counts(5) == (1, 1)
    refused(Refusal.LINEAR, made.store, 5, 300, 6 << 12 | P)
    refused(Refusal.LINEAR, made.store, 6, 300, 4 << 12 | P)
    refused(Refusal.LINEAR, made.store, 5, 300, 4 << 12 | P)
    made.check()
    made.store(4, 300, 0)
    assert made.counts(5) == (0, 0)
    made.store(6, 300, 4 << 12 | P)
    made.check()


def test_large_pages_are_had_of_own_frames_that_are_no_tables() -> None:
    made = Made()
    chain(made)
    made.pin(4, L4)
    made.store(2, 1, 512 << 12 | RW | LARGE)
    assert made.counts(700) == (1, 1)
    refused(Refusal.OTHER_TYPE, made.pin, 700, L1)
    refused(Refusal.WRITABLE_TABLE, made.store, 2, 2, 0 | RW | LARGE)
    made.check()
    refused(Refusal.MALFORMED, made.store, 2, 3, 514 << 12 | RW | LARGE)
    refused(Refusal.NO_FRAME, made.store, 2, 3, COUNT << 12 | RW | LARGE)
    refused(Refusal.LARGE, made.store, 3, 3, 0 | RW | LARGE)  # a GiB
    machine = made.other.first - 512  # named by the machine's number, this ends within the domain
    made.store(2, 4, machine << 12 | P | LARGE)
    made.store(2, 1, 0)
    made.pin(700, L1)
    made.check()


def test_large_pages_that_straddle_another_domain_are_refused() -> None:
    frames = FrameTable(FIRST, 2048)
    mine = frames.add_domain(memoryview(bytearray(256 << 12)), FIRST)
    frames.add_domain(memoryview(bytearray(256 << 12)), FIRST + 256)
    tables = DirectTables(frames, mine, format_of("x86-64"))
    tables.pin(FIRST + 1, L2)
    caught = refused(Refusal.LARGE, tables.store, FIRST + 1, 0, FIRST << 12 | P | LARGE)
    assert caught.frame == FIRST + 256
    scattered = Made(order=[1, 0, *range(2, COUNT)])
    scattered.pin(2, L2)
    refused(Refusal.LARGE, scattered.store, 2, 0, 0 | P | LARGE)
    without = DirectTables(frames, mine, format_of("x86-64"), large=False)
    refused(Refusal.LARGE, without.store, FIRST + 1, 0, FIRST << 12 | P | LARGE)


def test_pins_are_one_each_and_of_tables() -> None:
    made = Made()
    made.pin(9, L2)
    refused(Refusal.PINNED, made.pin, 9, L2)
    refused(Refusal.NOT_PINNED, made.tables.unpin, made.machine(10))
    for level in (0, 5, DESCRIPTORS, WRITABLE):
        refused(Refusal.NOT_A_TABLE, made.pin, 10, level)
    made.tables.unpin(made.machine(9))
    refused(Refusal.NOT_PINNED, made.tables.unpin, made.machine(9))


def test_a_page_of_descriptors_holds_segments_of_level_3_and_is_not_written() -> None:
    made = Made()
    pages = DescriptorPages(made.frames, made.domain, made.form)
    flat, kernel, gate = 0x00AF_FB00_0000_FFFF, 0x00AF_9B00_0000_FFFF, 0x0000_EE00_0000_0000
    made.put(30, 1, flat)
    made.put(30, 2, gate)
    refused(Refusal.DESCRIPTOR, pages.use, made.machine(30))
    made.put(30, 2, 0)
    pages.use(made.machine(30))
    for word in (kernel, gate):
        refused(Refusal.DESCRIPTOR, pages.store, made.machine(30), 2, word)
    pages.store(made.machine(30), 2, flat)
    chain(made)
    made.put(1, 25, 30 << 12 | RW)
    refused(Refusal.WRITABLE_TABLE, made.pin, 4, L4)
    refused(Refusal.OTHER_TYPE, made.store, 30, 2, 0)
    refused(Refusal.OTHER_TYPE, made.pin, 30, L1)
    pages.leave(made.machine(30))
    made.pin(4, L4)
    refused(Refusal.OTHER_TYPE, pages.use, made.machine(30))


def test_frames_change_hands_when_nothing_leads_to_them_and_translations_are_flushed() -> None:
    made = Made()
    chain(made)
    made.pin(4, L4)
    refused(Refusal.IN_USE, made.frames.release, made.domain, 105)
    made.store(1, 5, 0)
    frame = made.frames.release(made.domain, 105)
    assert made.frames.flush_due
    refused(Refusal.NO_FRAME, made.store, 1, 5, 105 << 12 | P)
    refused(Refusal.FOREIGN, made.store, 1, 5, frame << 12 | P)
    refused(Refusal.NO_FRAME, made.frames.release, made.domain, 105)
    refused(Refusal.IN_USE, made.frames.give, made.domain, 106, frame)
    refused(Refusal.FOREIGN, made.frames.give, made.domain, 105, made.other.first)
    made.frames.give(made.domain, 105, frame)
    made.store(1, 5, 105 << 12 | P)
    made.check()


def test_a_domain_is_of_free_frames_that_are_there() -> None:
    made = Made()
    for first, order, sentence in (
        (FIRST + 4 * COUNT, None, "not all there"),
        (made.other.first, None, "not free"),
        (FIRST + 3 * COUNT, [0, 0], "name each of them once"),
    ):
        with pytest.raises(ValueError, match=sentence):
            made.frames.add_domain(memoryview(bytearray(2 << 12)), first, order)


ENTRIES = st.tuples(
    st.sampled_from([0, 0, P, RW, RW, RW | U, P | NX, RW | LARGE, P | LARGE, RW | G, RW | 1 << 58]),
    st.integers(0, 11),
)
ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("store"), st.integers(0, 11), st.integers(0, 11), ENTRIES),
        st.tuples(st.just("pin"), st.integers(0, 11), st.integers(1, 4), st.none()),
        st.tuples(st.just("unpin"), st.integers(0, 11), st.none(), st.none()),
        st.tuples(st.just("root"), st.integers(0, 11), st.none(), st.none()),
        st.tuples(st.just("leave"), st.none(), st.none(), st.none()),
        st.tuples(st.just("write"), st.integers(0, 11), st.integers(0, 11), ENTRIES),
    ),
    max_size=60,
)


@given(ACTS)
@settings(max_examples=120, deadline=None)
def test_whatever_a_guest_asks_for_the_counts_are_those_of_its_tables(acts: list[Any]) -> None:
    made = Made()
    for what, number, other, entry in acts:
        try:
            if what == "store":
                made.store(number, other, entry[0] | entry[1] << 12)
            elif what == "pin":
                made.pin(number, other)
            elif what == "unpin":
                made.tables.unpin(made.machine(number))
            elif what == "root":
                made.tables.use_root(made.machine(number))
                made.roots.append(made.machine(number))
            elif what == "leave" and made.roots:
                made.tables.leave_root(made.roots.pop())
            elif what == "write" and not made.frames.uses[made.at(number)]:
                made.put(number, other, entry[0] | entry[1] << 12)
        except Refused:
            pass
        made.check()
    while made.roots:
        made.tables.leave_root(made.roots.pop())
    for number in range(12):
        if made.frames.pinned[made.at(number)]:
            made.tables.unpin(made.machine(number))
    made.check()


def test_frames_that_become_executable_are_told_of_once_each_way() -> None:
    made = Made()
    made.tables.new_code = told = set[int]()
    chain(made, bits=P)
    for index in range(19):
        made.put(1, index, (100 + index) << 12 | P | (NX if index % 3 else 0))
    made.pin(4, L4)
    assert told == {made.machine(100 + index) for index in range(20) if index % 3 == 0 or index == 19}
    told.clear()
    made.store(1, 1, 101 << 12 | RW)
    made.store(1, 2, 102 << 12 | RW | NX)
    assert told == {made.machine(101)}
    told.clear()
    made.store(2, 1, 512 << 12 | P | LARGE)
    assert len(told) == 512


def test_what_holds_a_frame_from_outside_keeps_its_type_and_owner() -> None:
    made = Made()
    frame = made.machine(50)
    made.frames.get_writable(made.domain, frame)
    refused(Refusal.OTHER_TYPE, made.pin, 50, L1)
    made.frames.put_writable(frame)
    made.frames.get(made.domain, frame)
    refused(Refusal.IN_USE, made.frames.release, made.domain, 50)
    made.pin(50, L1)
    refused(Refusal.WRITABLE_TABLE, made.frames.get_writable, made.domain, frame)
    refused(Refusal.FOREIGN, made.frames.get, made.other, frame)
    made.frames.put(frame)
    made.check()


def test_a_flush_that_is_due_is_told_once_until_it_is_done() -> None:
    made = Made()
    told: list[int] = []
    made.frames.on_flush_due = lambda: told.append(made.frames.flushes)
    chain(made)
    made.pin(4, L4)
    for index in (0, 1):
        made.store(1, index, 0)
    for number in (100, 101):
        made.pin(number, L1)
    assert told == [1]
    made.frames.flushed()
    made.store(1, 2, 0)
    made.pin(102, L1)
    assert told == [1, 2]


def test_a_guests_first_frame_may_have_another_number_than_0() -> None:
    base = 0x40000
    frames = FrameTable(FIRST, 2 * COUNT)
    domain = frames.add_domain(memoryview(bytearray(COUNT << 12)), FIRST + COUNT, base=base)
    tables = DirectTables(frames, domain, format_of("aarch64"))
    page = 0x743
    for index in range(10):
        tables.words[3 * 512 + index] = base + 100 + index << 12 | page
    tables.words[3 * 512 + 10] = base + 200 << 12 | page
    tables.pin(tables.machine_frame(base + 3), 1)
    assert tables.words[3 * 512] == FIRST + COUNT + 100 << 12 | page | 1 << 55
    assert tables.read(FIRST + COUNT + 3, 10) == base + 200 << 12 | page
    tables.store(FIRST + COUNT + 3, 11, base << 12 | page)
    assert tables.read(FIRST + COUNT + 3, 11) == base << 12 | page
    for foreign in (5, base - 1, base + COUNT):
        with pytest.raises(Refused):
            tables.store(FIRST + COUNT + 3, 12, foreign << 12 | page)
    with pytest.raises(Refused):
        tables.machine_frame(5)
    tables.unpin(FIRST + COUNT + 3)
    assert tables.words[3 * 512] == base + 100 << 12 | page
