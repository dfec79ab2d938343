"""MIPS32 rewriting: what stands in an instruction's place, clusters, delay slots, and why not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt.pagescan import PAGE
from bt.tactics.fixed.words import EVERY
from bt.tactics.mips import words
from bt.tactics.mips.tactics import MipsTactics
from bt.tactics.page import patch_page
from bt.tactics.registry import tactics_of
from bt.tactics.tactics import Choice, CodePage, OutOfReach, Placing, Tactic
from bt.textmap import PristinePage
from paravirt import abi

DI, EI, DI_V0, ANDI, EHB, JR, NOP = 0x4160_6000, 0x4160_6020, 0x4162_6000, 0x3042_0001, 0xC0, 0x03E0_0008, 0
BASE = 0x8010_0000
ORDERS = ["little", "big"]


def page_of(tactics: MipsTactics, code: tuple[int, ...], known: bool, targets: int, taken: int, entry: int) -> CodePage:
    data = tactics.pack(*code).ljust(PAGE, b"\0")
    scan = tactics.scan_page(data, b"", 0)
    pristine = PristinePage(scan.boundaries, targets, taken, scan.sites, 0) if known else None
    return CodePage(BASE, BASE, data, b"", scan, pristine, entry)


def choose(
    *code: int,
    order: str = "little",
    strategy: str = "inline",
    known: bool = True,
    targets: int = 0,
    taken: int = 0,
    entry: int = -1,
) -> tuple[Choice, tuple[int, ...]]:
    """The choice for the first site, and the page's first words after patching."""
    tactics: Any = tactics_of("mips32", order)
    page = page_of(tactics, code, known, targets, taken, entry)
    ground = tactics.ladder(strategy, None).survey(page)
    patched = patch_page(page, page.scan.sites, ground, lambda _site: strategy, lambda _choice: None)
    kind = ">u4" if order == "big" else "<u4"
    return patched.placed[0].choice, tuple(int(word) for word in np.frombuffer(patched.code, kind)[: len(code)])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("word", "made"),
    [
        (DI, 0xAC00_8000),  # sw zero, -0x8000(zero)
        (EI, 0xAC1D_8000),  # sw sp, -0x8000(zero)
        (0xBC41_0000, NOP),  # cache
        (0x4002_7000, 0x8C02_9000),  # mfc0 v0, EPC
        (0x401A_4000, 0x8C1A_9004),  # mfc0 k0, BadVAddr
        (0x409B_1000, 0xAC1B_9020),  # mtc0 k1, EntryLo0
    ],
)
def test_what_is_frequent_becomes_one_word_in_its_place(order: str, word: int, made: int) -> None:
    choice, code = choose(word, order=order)
    assert (choice.tactic, code) == (Tactic.REPLACED, (made,))


@pytest.mark.parametrize("order", ORDERS)
def test_one_word_may_also_stand_in_a_delay_slot(order: str) -> None:
    choice, code = choose(0x1040_0003, DI, order=order)
    assert (choice.tactic, code) == (Tactic.REPLACED, (0x1040_0003, 0xAC00_8000))


@pytest.mark.parametrize("order", ORDERS)
def test_di_with_a_result_is_replaced_with_what_is_made_of_it(order: str) -> None:
    choice, code = choose(DI_V0, ANDI, EHB, JR, order=order)
    assert (choice.tactic, choice.placing) == (Tactic.REPLACED, Placing.CLUSTER)
    assert code == (0x8C02_8000, 0xAC00_8000, 0x0002_102B, JR)


@pytest.mark.parametrize(
    ("code", "marks", "why"),
    [
        ((DI_V0, 0x3042_0003, EHB), {}, "all of Status"),
        ((DI_V0, 0x3043_0001, EHB), {}, "all of Status"),
        ((DI_V0, ANDI, JR), {}, "all of Status"),
        ((DI_V0, ANDI, EHB), {"known": False}, "not all branches are known"),
        ((DI_V0, ANDI, EHB), {"targets": 1 << 4}, "a branch leads behind it"),
        ((DI_V0, ANDI, EHB), {"taken": 1 << 8}, "the kernel looks there"),
        ((DI_V0, ANDI, EHB), {"entry": 8}, "execution begins behind it"),
        ((DI_V0, ANDI, EHB, 0x1000_FFFD), {}, "a branch leads behind it"),
    ],
)
def test_it_stays_as_it_is_where_that_would_not_be_sound(
    code: tuple[int, ...], marks: dict[str, Any], why: str
) -> None:
    choice, after = choose(*code, **marks)
    assert choice.tactic is Tactic.NATIVE
    assert why in choice.refused
    assert after == code


def test_di_with_a_result_in_a_delay_slot_exits_by_itself() -> None:
    tactics: Any = tactics_of("mips32")
    code = (0x1000_0004, DI_V0, ANDI, EHB)
    page = page_of(tactics, code, True, 0, 0, -1)
    choice = tactics.ladder("inline", None).survey(page).choose(page.scan.sites[0], "inline")
    assert (choice.tactic, "delay slot" in choice.refused) == (Tactic.NATIVE, True)


@pytest.mark.parametrize("word", [0xC082_0000, 0xE082_0000, 0x4402_0000, 0x041F_0000, 0x7C03_E83B])
def test_what_runs_by_itself_stays(word: int) -> None:
    choice, code = choose(word)
    assert (choice.tactic, code) == (Tactic.SAME, (word,))


@pytest.mark.parametrize("word", [0x4200_0018, 0x4200_0006, 0x4002_6000, 0x4082_6000, 0x4002_4800])
def test_what_needs_the_hypervisor_exits_by_itself_and_says_why_not_better(word: int) -> None:
    for strategy in ("inline", "hypercall", "auto"):
        choice, code = choose(word, strategy=strategy)
        assert (choice.tactic, code) == (Tactic.NATIVE, (word,))
        assert choice.refused


def test_nothing_is_changed_with_traps_alone() -> None:
    code = (DI, EI, DI_V0, ANDI, EHB, 0xBC41_0000)
    assert choose(*code, strategy="trap")[1] == code


def test_branch_targets_are_relative_to_the_delay_slot() -> None:
    code = np.array([0x1000_0003, NOP, 0x1440_FFFE, NOP, 0x0411_0001, NOP, 0x4500_0001, NOP], np.uint32)
    assert words.branch_targets(code).tolist() == [16, 4, 24, 32]


def test_jumps_stay_in_the_region_of_their_delay_slot() -> None:
    assert words.jump(0x8010_0000, 0x8FFF_FFFC) == 0x0BFF_FFFF
    with pytest.raises(OutOfReach):
        words.jump(0x8FFF_FFFC, 0x8000_0000)
    with pytest.raises(OutOfReach):
        words.jump(0x8010_0000, abi.MIPS32.base)
    assert words.jump_targets(np.array([0x0C04_0000], np.uint32), 0x9000_0000).tolist() == [0x9010_0000]


@given(st.integers(0, 31), st.integers(0, 0xFFFF_FFFF))
def test_an_address_near_zero_is_reached_from_it_and_no_other(register: int, address: int) -> None:
    near = address < 0x8000 or address >= 0xFFFF_8000
    if near:
        word = words.load(register, address)
        assert word >> 26 == 0x23
        assert (word & 0xFFFF) - ((word & 0x8000) << 1) & 0xFFFF_FFFF == address
    else:
        with pytest.raises(OutOfReach):
            words.load(register, address)


def test_every_word_is_an_instruction() -> None:
    tactics: Any = tactics_of("mips32")
    scan = tactics.scan_page(tactics.pack(DI, NOP, EI).ljust(PAGE, b"\0"), b"", 0)
    assert scan.boundaries == EVERY
    assert [site.offset for site in scan.sites] == [0, 8]
