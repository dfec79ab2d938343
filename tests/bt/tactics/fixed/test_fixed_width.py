"""The base of fixed-width instruction sets, held by a toy one: sweep, page scans, the climb, veneers, reach."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bt.pagescan import PAGE, Found
from bt.tactics.fixed.body import Body, Call, Code, Relative
from bt.tactics.fixed.ladder import FixedLadder, Replacement
from bt.tactics.fixed.tactics import FixedWidth
from bt.tactics.fixed.words import EVERY
from bt.tactics.page import patch_page
from bt.tactics.tactics import Arena, Choice, CodePage, OutOfReach, Patch, Placing, Refused, Region, Tactic
from bt.textmap import PristinePage
from emulator.isa.isas import X86_64, Isa
from emulator.isa.operation import Operation
from emulator.isa.sensitive import Pattern, Patterns, Route, SensitiveInstruction, Sensitivity, UserBehaviour

NOP, TRAP, READ, WRITE, SECRET, HALT, BRANCH = (
    0x0000_0000, 0xEEEE_EEEE, 0xA000_0001, 0xA000_0002, 0xA000_0003, 0xA000_0004, 0xB000_0000,
)  # fmt: skip
"""Words of the toy; BRANCH | (distance in words & 0xFFF)."""
BASE = 0x40_0000
REACH = 2048


def row(name: str, word: int, behaviour: UserBehaviour, operation: Operation) -> SensitiveInstruction:
    return SensitiveInstruction(
        name, Patterns((Pattern(0xFFFF_FFFF, word),)), behaviour, Sensitivity.BEHAVIOUR, operation,
        (Route.INLINE, Route.HYPERCALL, Route.TRAP), ".inst", "none",
    )  # fmt: skip


ROWS = (
    row("READ", READ, UserBehaviour.LEAKS, Operation.READ_FLAGS),
    row("WRITE", WRITE, UserBehaviour.IGNORED, Operation.WRITE_FLAGS),
    row("SECRET", SECRET, UserBehaviour.LEAKS, Operation.READ_TIME_STAMP),
    row("HALT", HALT, UserBehaviour.TRAPS, Operation.HALT),
)
TOY: Isa = replace(X86_64, name="toy", load_rows=lambda: ROWS, planted=lambda one: not one.privileged)


def words(*values: int, order: str = "little") -> bytes:
    return struct.pack(f"{'<' if order == 'little' else '>'}{len(values)}I", *values)


class Toy(FixedWidth):
    """Branches reach 2047 words; a trap is EEEEEEEE."""

    longest = 4
    ladder_region = Region(BASE + PAGE, BASE + PAGE + 0x400)

    def branches(self, code: NDArray[np.uint32]) -> NDArray[np.int64]:
        at = np.flatnonzero(code & 0xFFFF_F000 == BRANCH)
        distance = (code[at] & 0xFFF).astype(np.int64)
        return (at + np.where(distance >= REACH, distance - 2 * REACH, distance)) * 4

    def branch(self, source: int, target: int) -> bytes:
        distance = (target - source) // 4
        if not -REACH <= distance < REACH:
            raise OutOfReach("too far")
        return words(BRANCH | distance & 0xFFF, order=self.byte_order)

    def trap(self, site: Found) -> bytes:
        return words(TRAP, order=self.byte_order)

    @property
    def fill(self) -> bytes:
        return words(TRAP, order=self.byte_order)

    far_size = 8
    far_clobbers = ("r9",)

    def far_branch(self, source: int, target: int) -> bytes:
        return words(0xC000_0000, target, order=self.byte_order)

    def padding(self, page: CodePage) -> Sequence[tuple[int, int]]:
        empty = words(0x7777_7777, order=self.byte_order)
        return [(at, 8) for at in range(0, PAGE - 4, 4) if page.code[at : at + 8] == empty * 2]

    def ladder(self, strategy: str, image: object, delta: int = 0, cache: object = None) -> ToyLadder:
        return ToyLadder(self, self.ladder_region)


class ToyLadder(FixedLadder):
    def replacement(self, page: CodePage, site: Found) -> Replacement | None:
        return Replacement(self.tactics.branch(0, 4), "it is for the test") if site.code == 0 else None

    def body(self, page: CodePage, site: Found, strategy: str) -> tuple[Tactic, str, Body]:
        if site.code == 1:
            pieces = (Code(words(1, 2)), Relative(4, lambda at, page: struct.pack("<I", at - page)))
            return Tactic.INLINE, "because", Body(pieces, site.offset, site.offset + 4, ("r1",))
        if site.code == 3:
            trap = Call(words(TRAP), Operation.HALT, site.offset, page.code[site.offset : site.offset + 4])
            return Tactic.HYPERCALL, "because", Body((trap, Code(page.code[site.offset + 4 : site.offset + 8])),
                                                     site.offset, site.offset + 8)  # fmt: skip
        raise Refused("nobody can")


def page_of(tactics: FixedWidth, code: bytes, known: bool = True, targets: int = 0, taken: int = 0) -> CodePage:
    code = code.ljust(PAGE, b"\0")
    scan = tactics.scan_page(code, b"", 0)
    pristine = PristinePage(scan.boundaries, targets, taken, scan.sites, 0) if known else None
    return CodePage(BASE, BASE, code, b"", scan, pristine)


def choose(code: bytes, strategy: str = "auto", tactics: Toy | None = None, **marks: Any) -> Choice:
    tactics = tactics or Toy(TOY, "little")
    page = page_of(tactics, code, **marks)
    return tactics.ladder(strategy, None).survey(page).choose(page.scan.sites[0], strategy)


@pytest.mark.parametrize("order", ["little", "big"])
def test_every_sensitive_word_of_a_page_is_found_in_both_byte_orders(order: str) -> None:
    code = words(NOP, READ, NOP, HALT, order=order).ljust(PAGE, b"\0")
    scan = Toy(TOY, order).scan_page(code, b"", 0)
    assert scan.sites == (Found(4, 4, 0), Found(12, 4, 3))
    assert scan.boundaries == EVERY
    assert sum(1 << at for at in range(0, PAGE, 4)) == EVERY


def test_a_word_that_the_original_has_as_data_is_a_site_only_once_it_is_entered() -> None:
    tactics = Toy(TOY, "little")
    code = words(NOP, READ, WRITE, NOP).ljust(PAGE, b"\0")
    pristine = EVERY & ~(1 << 4 | 1 << 8)
    scan = tactics.scan_page(code, b"", 0, pristine)
    assert scan.sites == ()
    entered = tactics.with_entry(scan, code, b"", 8)
    assert entered.sites == (Found(8, 4, 1),)
    assert entered.boundaries == pristine | 1 << 8
    assert tactics.with_entry(entered, code, b"", 12) is entered


def test_changed_pages_keep_what_is_known_of_their_data() -> None:
    tactics = Toy(TOY, "little")
    old, new = words(NOP, READ).ljust(PAGE, b"\0"), words(NOP, READ, WRITE).ljust(PAGE, b"\0")
    scan = tactics.scan_page(old, b"", 0, EVERY & ~(1 << 4))
    assert tactics.rescan_page(old, scan, new).sites == (Found(8, 4, 1),)


def test_the_climb_takes_the_best_that_the_strategy_allows() -> None:
    assert choose(words(READ)).tactic is Tactic.REPLACED
    assert choose(words(READ), "hypercall").refused == "nobody can"
    assert choose(words(WRITE)).tactic is Tactic.INLINE
    trap = choose(words(WRITE), "trap")
    assert (trap.tactic, trap.code) == (Tactic.TRAP, words(TRAP))
    secret = choose(words(SECRET))
    assert (secret.tactic, secret.refused) == (Tactic.TRAP, "nobody can")
    assert choose(words(HALT), "trap").tactic is Tactic.NATIVE
    assert choose(words(HALT)).placing is Placing.DISPLACED


def test_a_fixup_is_its_pieces_and_the_way_back() -> None:
    choice = choose(words(NOP, WRITE))
    assert choice.draft is not None
    fixup, patches = choice.draft.place(BASE + PAGE + 8, BASE)
    assert fixup.code == words(1, 2, PAGE + 16, BRANCH | (8 - (PAGE + 8 + 12)) // 4 & 0xFFF)
    assert len(fixup.code) == choice.draft.size
    assert fixup.site == BASE + 4
    assert patches == (Patch(4, words(BRANCH | (PAGE + 4) // 4)),)
    assert choice.draft.clobbers == ("r1",)


def test_a_hypercall_goes_on_inside_its_fixup() -> None:
    choice = choose(words(HALT, 5))
    assert choice.draft is not None
    fixup, patches = choice.draft.place(BASE + PAGE, BASE)
    ((at, call),) = fixup.hypercalls.items()
    assert (at, call.site, call.resume, call.instruction) == (BASE + PAGE, BASE, BASE + PAGE + 4, words(HALT))
    assert patches[0].code == words(BRANCH | PAGE // 4, TRAP)


@pytest.mark.parametrize(
    ("marks", "why"),
    [
        ({"targets": 1 << 4}, "a branch leads into"),
        ({"taken": 1 << 4}, "looks at or patches"),
        ({"known": False}, "not all branches are known"),
    ],
)
def test_neighbours_are_displaced_only_where_nothing_leads_to_them(marks: dict[str, Any], why: str) -> None:
    choice = choose(words(HALT, 5), **marks)
    assert choice.tactic is Tactic.NATIVE
    assert why in choice.refused


def test_the_pages_own_branches_count_as_leads() -> None:
    assert "a branch leads into" in choose(words(HALT, 5, NOP, BRANCH | -2 & 0xFFF)).refused


class FarToy(Toy):
    ladder_region = Region(BASE + 0x10_0000, BASE + 0x10_0040)


def test_what_is_out_of_reach_goes_by_a_veneer_in_padding_nearby() -> None:
    tactics = FarToy(TOY, "little")
    assert "no padding for a veneer" in choose(words(WRITE), tactics=tactics).refused
    choice = choose(words(WRITE, *[NOP] * 899, 0x7777_7777, 0x7777_7777), tactics=tactics)
    assert choice.placing is Placing.PADDING
    assert choice.draft is not None
    assert choice.draft.clobbers == ("r1", "r9")
    fixup, patches = choice.draft.place(FarToy.ladder_region.start, BASE)
    assert patches == (
        Patch(0, words(BRANCH | 900)),
        Patch(3600, words(0xC000_0000, FarToy.ladder_region.start)),
    )
    assert fixup.code[-8:] == words(0xC000_0000, BASE + 4)
    assert len(fixup.code) == choice.draft.size


@pytest.mark.parametrize("marks", [{"targets": 1 << 8}, {"taken": 1 << 12}])
def test_padding_to_which_something_leads_holds_no_veneer(marks: dict[str, Any]) -> None:
    choice = choose(words(WRITE, NOP, 0x7777_7777, 0x7777_7777), tactics=FarToy(TOY, "little"), **marks)
    assert "no padding for a veneer" in choice.refused


def test_without_a_far_branch_what_is_out_of_reach_traps() -> None:
    class NoFar(FarToy):
        far_size = 0

    assert choose(words(WRITE), tactics=NoFar(TOY, "little")).refused == "its fixup is out of a branch's reach"


def test_a_guest_without_room_for_fixups_gets_traps() -> None:
    class Nowhere(Toy):
        ladder_region = Region(0, 0)

    assert "no place for fixups" in choose(words(WRITE), tactics=Nowhere(TOY, "little")).refused


def test_a_page_is_patched_site_by_site_and_says_what_cannot_be_entered() -> None:
    tactics = Toy(TOY, "little")
    page = page_of(tactics, words(READ, WRITE, HALT, NOP, SECRET))
    arena = Arena(Toy.ladder_region, 8)
    ladder = tactics.ladder("auto", None)

    def place(choice: Choice) -> tuple[int, tuple[Patch, ...]] | None:
        assert choice.draft is not None
        at = arena.take(choice.draft.size)
        return (at, choice.draft.place(at, BASE)[1]) if at is not None else None

    patched = patch_page(page, page.scan.sites, ladder.survey(page), lambda _: "auto", place)
    assert [one.choice.tactic.value for one in patched.placed] == ["replaced", "inline", "hypercall", "trap"]
    assert patched.code[16:20] == words(TRAP)
    assert patched.inside == 0xFF << 8 & ~(1 << 8) | 0xF << 4 & ~(1 << 4)


def test_a_full_region_leaves_traps_and_says_so() -> None:
    tactics = Toy(TOY, "little")
    page = page_of(tactics, words(WRITE))
    patched = patch_page(
        page, page.scan.sites, tactics.ladder("auto", None).survey(page), lambda _: "auto", lambda _: None
    )
    (one,) = patched.placed
    assert (one.choice.tactic, one.fixup) == (Tactic.TRAP, None)
    assert "no room" in one.choice.refused


def test_sites_that_nobody_asked_for_are_left() -> None:
    tactics = Toy(TOY, "little")
    page = page_of(tactics, words(WRITE, SECRET))
    ground = tactics.ladder("auto", None).survey(page)
    patched = patch_page(page, page.scan.sites, ground, lambda site: "trap" if site.offset else "", lambda _: None)
    assert [one.choice.tactic for one in patched.placed] == [Tactic.LEAVE, Tactic.TRAP]
    assert patched.code[:4] == words(WRITE)
