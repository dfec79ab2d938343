"""Tables of every format that is walked directly, and what is imposed on their entries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.isa.entries import FORMATS, format_of
from paravirt.mmu.frame_types import (
    UNTYPED,
    WRITABLE,
    Refusal,
    Refused,
)
from tests.paravirt.mmu.direct_guest import L1, L2, L4, Made, leaf, pointer, refused


def test_mips_has_no_tables_to_be_walked() -> None:
    with pytest.raises(ValueError, match="TLB is filled by instructions"):
        format_of("mips32")
    with pytest.raises(ValueError, match="no page-table format"):
        format_of("vax")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("translates", [True, False])
def test_every_format_is_kept_by_the_same_rules(name: str, translates: bool) -> None:
    form = format_of(name)
    made = Made(form, translates)

    def frame(number: int) -> int:
        return number if translates else made.machine(number)

    root = 8
    for index in range(16):
        made.put(1, index, leaf(form, frame(100 + index), index % 2 == 0))
    for level in range(2, form.top + 1):
        made.put(root if level == form.top else level, 1, pointer(form, level, frame(level - 1)))
    made.tables.use_root(made.machine(root))
    made.roots = [made.machine(root)]
    made.check()
    assert [made.kind(100), made.counts(100), made.kind(101), made.counts(101)] == [WRITABLE, (1, 1), UNTYPED, (0, 1)]
    refused(Refusal.FOREIGN, made.store, 1, 40, leaf(form, made.other.first, False))
    refused(Refusal.WRITABLE_TABLE, made.store, 1, 40, leaf(form, frame(root), True))
    made.store(1, 0, leaf(form, frame(100), False))
    assert made.counts(100) == (0, 1)
    made.check()
    with pytest.raises(Refused):
        made.tables.use_root(made.machine(1))
    made.tables.leave_root(made.machine(root))
    assert not made.frames.refs_array.any()
    imposed = 0 if form.kept else form.levels[0].imposed
    assert made.get(1, 3) == leaf(form, frame(103), False) | imposed


def test_bits_by_which_an_arm_processor_gives_more_than_an_entry_says_are_refused() -> None:
    made = Made(format_of("aarch64"))
    made.pin(1, L1)
    for bits in (1 << 51, 1 << 52):  # dirty bit modifier, contiguous
        refused(Refusal.MALFORMED, made.store, 1, 0, 100 << 12 | 1 << 7 | 3 | bits)
    short = Made(format_of("armv7"))
    short.pin(2, L2)
    refused(Refusal.MALFORMED, short.store, 2, 0, 1 << 18 | 2)  # a supersection
    short.pin(1, L1)
    refused(Refusal.MALFORMED, short.store, 1, 0, 100 << 12 | 1)  # a large page


@given(entry=st.integers(0, (1 << 64) - 1), level=st.integers(1, 4))
def test_what_is_imposed_on_an_entry_is_not_seen_by_who_reads_it(entry: int, level: int) -> None:
    for form in (format_of(name) for name in FORMATS):
        if level > form.top or not form.kept:
            continue
        own = entry & (1 << 8 * form.entry_size) - 1 & ~form.taken(level)
        stored = form.impose(level, own)
        assert form.restore(level, stored) == own
        if own & form.levels[level - 1].present:
            assert stored & form.levels[level - 1].imposed == form.levels[level - 1].imposed


@given(entries=st.lists(st.integers(0, (1 << 64) - 1), min_size=9, max_size=40))
def test_many_entries_are_imposed_on_and_read_back_as_single_ones_are(entries: list[int]) -> None:
    for name in ("x86-64", "aarch64"):
        made = Made(format_of(name))
        level = made.form.levels[0]
        own = [entry & ~made.form.taken(1) & ~level.memory_address | level.memory | 5 << 12 for entry in entries]
        numbers = np.full(len(own), made.machine(5), dtype=np.int64)
        stored = made.tables.impose_on_pages(np.array(own, dtype=np.uint64), numbers)
        at_machine = [entry & ~level.memory_address | made.machine(5) << 12 for entry in own]
        assert stored.tolist() == [made.form.impose(1, entry) for entry in at_machine]
        assert made.tables.pages_to_guest(stored).tolist() == own


def test_on_aarch64_what_the_kernel_may_execute_is_open_to_el0_and_what_nobody_may_is_not() -> None:
    form = format_of("aarch64")
    user, read_only, privileged, unprivileged = 1 << 6, 1 << 7, 1 << 53, 1 << 54
    for guests, executable in (
        (unprivileged, True),
        (user | privileged, True),
        (privileged | unprivileged, False),
        (user | privileged | unprivileged, False),
        (0, True),
    ):
        stored = form.impose(1, 0x403 | guests | read_only)
        assert stored & user
        assert bool(stored & unprivileged) != executable
        assert form.restore(1, stored) == 0x403 | guests | read_only


def test_a_root_of_aarch64_alone_may_hide_what_is_below_from_user_code() -> None:
    made = Made(format_of("aarch64"))
    hidden = 1 << 61
    made.put(4, 0, 3 << 12 | 3 | hidden)
    made.pin(4, L4)
    mask, value = made.form.user
    assert made.get(4, 0) & mask != value
    assert not made.get(4, 0) & hidden, "the kernel has it all the same"
    assert made.tables.read(made.machine(4), 0) == 3 << 12 | 3 | hidden
    with pytest.raises(Refused) as caught:
        made.store(3, 0, 2 << 12 | 3 | hidden)
    assert caught.value.reason is Refusal.MALFORMED
