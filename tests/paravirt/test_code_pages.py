"""Translated copies of kernel code: reused while the guest's bytes are what they were, and never when they are not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paravirt import abi, layout
from paravirt.mmu.views import KERNEL_VIEW
from paravirt.translator import Fixup, Translation
from tests.paravirt.model_mmu import NX, ModelMmu

RIGHTS = 3
PAGE, FRAME = 0x4000_0000, 0x30_0000
SITE = PAGE + 0x10


class Marking:
    """A translator that inverts a page's first byte, and remembers what it was asked."""

    def __init__(self, fixups: tuple[Fixup, ...] = ()) -> None:
        self.asked: list[tuple[int, bytes, int]] = []
        self.fixups = fixups

    def translate(self, address: int, code: bytes, before: bytes, after: bytes, entry: int) -> Translation:
        """The page with its first byte inverted."""
        self.asked.append((address, code[:2], entry))
        return Translation(bytes([code[0] ^ 0xFF]) + code[1:], self.fixups, 1)


def guest(translator: Marking, pages: int = 1, copies: int = layout.CODE_COUNT) -> ModelMmu:
    mmu = ModelMmu(translator, places=replace(layout.X86_64, code_count=copies))
    for number in range(pages):
        mmu.tables.map(PAGE + number * 4096, FRAME + number * 4096 | RIGHTS)
    return mmu


def shown(mmu: ModelMmu, physical: int) -> bytes:
    at = physical - layout.CODE_BASE
    return bytes(mmu.copies[at : at + 2])


def test_kernel_code_executes_from_the_copy_that_the_translator_made() -> None:
    mmu = guest(Marking())
    mmu.memory[FRAME : FRAME + 2] = b"\x0f\x31"
    copy = mmu.access(PAGE, fetch=True)
    assert copy >= layout.CODE_BASE
    assert shown(mmu, copy) == b"\xf0\x31"
    assert mmu.memory[FRAME] == 0x0F, "the guest's own bytes stay"


def test_a_page_that_was_written_and_is_the_same_gets_its_copy_back() -> None:
    translator = Marking()
    mmu = guest(translator)
    first = mmu.access(PAGE, fetch=True)
    mmu.access(PAGE, write=True)
    assert mmu.access(PAGE, fetch=True) == first
    assert len(translator.asked) == 1
    assert mmu.code.reused == 1


def test_a_page_that_was_changed_is_translated_again_into_another_frame() -> None:
    translator = Marking()
    mmu = guest(translator)
    seen = set()
    for value in (1, 2, 3):
        mmu.access(PAGE, write=True)
        mmu.memory[FRAME] = value
        copy = mmu.access(PAGE, fetch=True)
        assert shown(mmu, copy)[0] == value ^ 0xFF
        seen.add(copy)
    assert len(seen) == 3
    assert [code[0] for _, code, _ in translator.asked] == [1, 2, 3]


def test_contents_that_come_back_find_their_old_copy() -> None:
    mmu = guest(Marking())
    copies = []
    for value in (1, 2, 1, 2):
        mmu.access(PAGE, write=True)
        mmu.memory[FRAME] = value
        copies.append(mmu.access(PAGE, fetch=True))
    assert copies[0] == copies[2]
    assert copies[1] == copies[3]
    assert mmu.code.translations == 2


def test_a_frame_at_two_addresses_is_translated_for_each() -> None:
    translator = Marking()
    mmu = guest(translator)
    mmu.tables.map(PAGE + 0x10_0000, FRAME | RIGHTS)
    assert mmu.access(PAGE, fetch=True) != mmu.access(PAGE + 0x10_0000, fetch=True)
    assert [address for address, _, _ in translator.asked] == [PAGE, PAGE + 0x10_0000]
    mmu.access(PAGE + 0x10_0000, write=True)
    for address in (PAGE, PAGE + 0x10_0000):
        found = mmu.walk(address)
        assert found is None or not found.executable, "a store to the frame takes every copy out of use"


@pytest.mark.parametrize("restored", [False, True])
def test_frames_that_take_turns_at_an_address_change_its_code_each_time(restored: bool) -> None:
    mmu = guest(Marking())
    mmu.memory[FRAME], mmu.memory[FRAME + 4096] = 1, 2
    changed: list[int] = []
    mmu.code.on_change = changed.append
    for turn in range(6):
        mmu.tables.map(PAGE, FRAME + turn % 2 * 4096 | RIGHTS)
        mmu.shadow.invalidate(PAGE)
        assert shown(mmu, mmu.access(PAGE, fetch=True))[0] == 0xFE - turn % 2
        if restored:
            mmu.code.note_frames()
    assert changed == [PAGE] * 6
    assert (mmu.code.translations, mmu.code.reused) == (2, 4)


def test_every_address_at_which_a_page_is_entered_is_asked_once() -> None:
    translator = Marking()
    mmu = guest(translator)
    entries = iter([PAGE, PAGE + 8, PAGE, PAGE + 8])
    mmu.code._entry_of = lambda _page: next(entries)
    for _ in range(4):
        mmu.access(PAGE, write=True)
        mmu.access(PAGE, fetch=True)
    assert [entry for _, _, entry in translator.asked] == [PAGE, PAGE + 8]


def test_a_full_pool_of_copies_starts_over_and_the_engine_forgets() -> None:
    mmu = guest(Marking(), pages=10, copies=4)
    forgotten: list[int] = []
    mmu.code.forget_code = lambda: forgotten.append(mmu.flushes)
    for _ in range(2):
        for number in range(10):
            mmu.memory[FRAME + number * 4096] = number
            copy = mmu.access(PAGE + number * 4096, fetch=True)
            assert layout.CODE_BASE <= copy < layout.CODE_BASE + (4 << 12)
            assert shown(mmu, copy)[0] == number ^ 0xFF
            mmu.check()
            for other in range(10):
                found = mmu.walk(PAGE + other * 4096)
                if found is not None and found.executable:
                    assert shown(mmu, found.physical)[0] == other ^ 0xFF, "no address executes another page's copy"
    assert len(forgotten) >= 4


def test_a_fixup_is_put_into_the_window_and_known_by_its_site() -> None:
    fixup = Fixup(abi.FIXUP_BASE + 0x40, b"\x90\xc3", SITE)
    mmu = guest(Marking((fixup,)))
    mmu.access(PAGE, fetch=True)
    assert bytes(mmu.window[0x40:0x42]) == b"\x90\xc3"
    assert mmu.code.fixup_sites == {abi.FIXUP_BASE + 0x40: SITE}
    assert mmu.code.intact()
    mmu.window[0x41] = 0
    assert not mmu.code.intact()


@pytest.mark.parametrize("address", [abi.FIXUP_BASE - 1, abi.SHARED_PAGE - 1, abi.SHARED_PAGE])
def test_a_fixup_outside_its_region_is_refused(address: int) -> None:
    mmu = guest(Marking((Fixup(address, b"\x90\xc3", SITE),)))
    with pytest.raises(ValueError, match="outside the fixup region"):
        mmu.access(PAGE, fetch=True)


def test_a_copy_that_was_damaged_is_noticed() -> None:
    mmu = guest(Marking())
    copy = mmu.access(PAGE, fetch=True)
    assert mmu.code.intact()
    mmu.copies[copy - layout.CODE_BASE] ^= 1
    assert not mmu.code.intact()


def test_pages_without_execute_right_are_never_translated() -> None:
    translator = Marking()
    mmu = guest(translator)
    mmu.tables.map(PAGE, FRAME | RIGHTS | NX)
    with pytest.raises(Exception, match="exception 14"):
        mmu.access(PAGE, fetch=True)
    assert translator.asked == []
    assert mmu.shadow.view == KERNEL_VIEW


class Addressed:
    """A translator whose copies say for which address they were made."""

    def translate(self, address: int, code: bytes, before: bytes, after: bytes, entry: int) -> Translation:
        """The page with its address at its beginning."""
        return Translation(address.to_bytes(8, "little") + code[8:], (), 1)


@pytest.mark.parametrize("level", [1, 2])
def test_code_that_is_reached_at_two_addresses_by_one_table_executes_as_made_for_each(level: int) -> None:
    mmu = ModelMmu(Addressed())
    other, large = PAGE + (1 << 39), 0x20_0000
    if level == 1:
        mmu.tables.map(PAGE, FRAME | RIGHTS)
    else:
        mmu.tables.map(PAGE, large | RIGHTS | 0x80, 2)
    mmu.tables.map(other, mmu.tables.entry(PAGE, 4), 4)  # all tables below the top are the same
    for address in (PAGE, other, PAGE + 0x3000 * (level - 1), other + 0x3000 * (level - 1)) * 2:
        copy = mmu.access(address, fetch=True)
        at = copy - layout.CODE_BASE
        assert int.from_bytes(mmu.copies[at : at + 8], "little") == address
        mmu.check()
    mmu.access(other, write=True)
    for address in (PAGE, other):
        found = mmu.walk(address)
        assert found is None or not found.executable, "a store takes both copies out of use"
