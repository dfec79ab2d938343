"""T32: where its instructions and IT blocks are, which fixups they get, and that these do what the instructions do."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt import image as images
from bt.image.image import Image
from bt.plan import Plan, PlannedSite
from bt.planner import plan
from bt.scan import Confidence, scan
from bt.tactics.arm import thumb
from bt.tactics.tactics import OutOfReach, Placing, Tactic
from emulator.engine.arm import FULL, UNDEFINED, USR
from emulator.engine.exit import Exit, ExitKind
from emulator.engine.unicorn.arm import UnicornArmEngine
from paravirt import abi

BASE = 0xC030_0000
FAR = 0x0200_0000
"""From there no branch of T32 reaches the fixups."""
NZCV = 0xA000_0000
T = 0x20
SVC_MODE = 0x13
CPSID, CPSIE, ADDS, BX_LR, SVC = 0xB672, 0xB662, 0x3001, 0x4770, 0xDF00
MRS_R1, MSR_R0, WFI_WIDE = 0xF3EF_8100, 0xF380_8100, 0xF3AF_8003
IT_EQ, ITT_EQ = 0xBF08, 0xBF04


def moved(code: bytes, distance: int) -> Image:
    """T32 alone, so many bytes further up."""
    return elf(code, entry=BASE + distance | 1, base=BASE + distance)


def elf(code: bytes, symbols: tuple[tuple[str, int, int], ...] = (), entry: int = BASE, base: int = BASE) -> Image:
    """An ELF for ARM of one segment of code; `symbols` are (name, address, info)."""
    names, table = b"\0", bytes(16)
    for name, value, info in symbols:
        table += struct.pack("<IIIBBH", len(names), value, 0, info, 0, 1)
        names += name.encode() + b"\0"
    titles = b"\0.text\0.symtab\0.strtab\0"
    at = 0x1000 + len(code) + 3 & -4
    parts = bytes(0x1000 - 84) + code.ljust(at - 0x1000, b"\0") + table + names + titles
    tables_at = 84 + len(parts) + 3 & -4
    sections = struct.pack("<10I", *[0] * 10)
    sections += struct.pack("<10I", 1, 1, 6, base, 0x1000, len(code), 0, 0, 4, 0)
    sections += struct.pack("<10I", 7, 2, 0, 0, at, len(table), 3, 1, 4, 16)
    sections += struct.pack("<10I", 15, 3, 0, 0, at + len(table), len(names), 0, 0, 1, 0)
    sections += struct.pack("<10I", 1, 3, 0, 0, at + len(table) + len(names), len(titles), 0, 0, 1, 0)
    ident = b"\x7fELF\x01\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIIIIIHHHHHH", 2, 40, 1, entry, 52, tables_at, 0x500_0400, 52, 32, 1, 40, 5, 4)
    program = struct.pack("<8I", 1, 0x1000, base, base, len(code), len(code), 5, 0x1000)
    whole = (header + program + parts).ljust(tables_at, b"\0") + sections
    return images.from_bytes(whole, "small")


def thumb_image(*instructions: int) -> Image:
    """T32 alone, by the entry's bit 0, behind enough of it that no IT block may begin in the page before."""
    return elf(thumb.packed(*[thumb.NOP] * 8, *instructions), entry=BASE | 1)


def planned(image: Image, mode: str = "inline") -> Plan:
    return plan(image, scan(image), mode)


def only(image: Image, mode: str = "inline") -> PlannedSite:
    (site,) = planned(image, mode).sites
    return site


@given(st.lists(st.integers(0, 0xFFFF), max_size=60), st.lists(st.booleans(), min_size=60, max_size=60))
def test_instructions_begin_where_decoding_one_by_one_finds_them(halfwords: list[int], code: list[bool]) -> None:
    begins, wide = thumb.boundaries(np.array(halfwords, np.uint16), np.array(code[: len(halfwords)], bool))
    wanted, skip = [], False
    for halfword, is_code in zip(halfwords, code, strict=False):
        wanted.append(is_code and not skip)
        skip = wanted[-1] and halfword >> 11 in (0b11101, 0b11110, 0b11111)
    assert begins.tolist() == wanted
    assert all(begins[at] for at in np.flatnonzero(wide))


@given(st.integers(-(1 << 23), (1 << 23) - 1))
def test_a_branch_leads_where_it_was_made_for(distance: int) -> None:
    code = thumb.branch(BASE, BASE + 4 + 2 * distance)
    halfwords = np.frombuffer(code, "<u2")
    assert thumb.branch_targets(halfwords, np.array([True, False])).tolist() == [4 + 2 * distance]


def test_a_branch_reaches_sixteen_mebibytes() -> None:
    with pytest.raises(OutOfReach):
        thumb.branch(BASE, BASE + 4 + (1 << 24))
    assert thumb.branch(BASE, BASE + 4).hex() == "00f000b8"  # GNU as: b.w .+4


def test_a_table_branch_leads_to_what_its_table_holds() -> None:
    code = np.array([0xE8DF, 0xF000, 0x0302, 0xBF00, BX_LR, BX_LR], np.uint16)
    begins = np.array([True, False, False, True, True, True])
    assert set(thumb.branch_targets(code, begins).tolist()) >= {8, 10}


def test_states_go_by_mapping_symbols_and_data_is_not_scanned() -> None:
    code = struct.pack("<I", 0xE10F_0000) + thumb.packed(MRS_R1, BX_LR, thumb.NOP) + struct.pack("<I", 0xE10F_0000)
    marks = (("$a", BASE, 0), ("$t.1", BASE + 4, 0), ("$d", BASE + 12, 0), ("g", BASE + 5, 0x12))
    image = elf(code, marks)
    sites = scan(image)
    assert [(site.address, site.state, site.symbol) for site in sites][1:] == [(BASE + 4, "t32", "g")]
    assert [(site.address, site.state) for site in sites] == [(BASE, "a32"), (BASE + 4, "t32")]
    assert sites[1].confidence is Confidence.CERTAIN


def test_without_mapping_symbols_bit_0_of_functions_says_and_literal_pools_are_found() -> None:
    function = thumb.packed(0x4801, MRS_R1, BX_LR) + struct.pack("<I", 0x8100_F3EF)  # ldr r0, [pc, #4]
    image = elf(function + bytes(4) + struct.pack("<I", 0xE10F_0000), (("f", BASE | 1, 2), ("g", BASE + 16, 2)))
    assert [(s.address - BASE, s.state) for s in scan(image)] == [(2, "t32"), (16, "a32")]


def test_all_of_an_image_is_of_its_entrys_state_where_nothing_else_says() -> None:
    assert [site.state for site in scan(thumb_image(MRS_R1, CPSID))] == ["t32", "t32"]


def test_a_wide_instruction_becomes_a_branch_and_a_short_one_moves_its_neighbour() -> None:
    assert only(thumb_image(MRS_R1, BX_LR)).placing is Placing.IN_PLACE
    behind = only(thumb_image(0x4770, CPSID, ADDS, BX_LR))
    assert (behind.placing, behind.start) == (Placing.DISPLACED, BASE + 18)
    before = only(thumb_image(ADDS, CPSID, BX_LR))
    assert (before.placing, before.start) == (Placing.DISPLACED, BASE + 16)


def test_what_depends_on_its_place_is_not_moved() -> None:
    site = only(thumb_image(0x4770, CPSID, BX_LR))
    assert site.tactic is Tactic.TRAP
    assert "neither the instruction behind it" in site.refused
    assert site.new == thumb.packed(thumb.UDF)


def test_no_branch_into_the_room_of_a_branch_is_broken() -> None:
    site = only(thumb_image(0x4770, CPSID, ADDS, 0xE7FD))  # b to the adds
    assert (site.tactic, site.refused) == (Tactic.TRAP, "a branch leads into the room for a branch")


@pytest.mark.parametrize(
    ("code", "tactic", "why"),
    [
        ((IT_EQ, MRS_R1), Tactic.INLINE, ""),
        ((ITT_EQ, MRS_R1, ADDS), Tactic.TRAP, "it is number 1 of 2 in an IT block, where no branch may stand but last"),
        ((ITT_EQ, ADDS, MRS_R1), Tactic.INLINE, ""),
        ((ITT_EQ, ADDS, ADDS, MRS_R1), Tactic.INLINE, ""),
    ],
)
def test_in_an_it_block_a_branch_stands_last_or_not_at_all(code: tuple[int, ...], tactic: Tactic, why: str) -> None:
    site = only(thumb_image(*code, BX_LR))
    assert (site.tactic, site.refused) == (tactic, why)
    if tactic is Tactic.TRAP:
        assert site.new == thumb.packed(thumb.UDF_WIDE)


def test_where_the_page_before_may_hold_the_it_the_site_is_trapped() -> None:
    image = elf(thumb.packed(*[thumb.NOP] * 0x800, MRS_R1, BX_LR), entry=BASE | 1)
    assert only(image).refused == "an IT block may begin in the page before"


def test_a_word_in_place_is_as_wide_and_of_the_same_state() -> None:
    site = only(thumb_image(0xEE07_0F15, BX_LR))  # mcr p15, 0, r0, c7, c5, 0
    assert (site.tactic, site.new) == (Tactic.REPLACED, thumb.packed(thumb.NOP_WIDE))


def across(instruction: int) -> PlannedSite:
    """A site whose second half is in the next page."""
    site = only(elf(thumb.packed(*[thumb.NOP] * 0x7FF, instruction, BX_LR), entry=BASE | 1))
    assert (site.address, site.start) == (BASE + 0xFFE, BASE + 0xFFE)
    return site


def test_an_instruction_across_two_pages_is_trapped_by_its_first_half() -> None:
    site = across(MRS_R1)
    assert (site.tactic, site.new) == (Tactic.TRAP, thumb.packed(thumb.BKPT) + thumb.packed(MRS_R1)[2:])


def test_an_instruction_across_two_pages_that_exits_by_itself_stays() -> None:
    site = across(0xEE07_0F15)  # mcr p15, 0, r0, c7, c5, 0
    assert (site.tactic, site.new) == (Tactic.NATIVE, site.old)


def test_a_site_further_than_a_branch_reaches_is_trapped() -> None:
    code = thumb.packed(*[thumb.NOP] * 8, MRS_R1, BX_LR)
    assert only(elf(code, entry=BASE | 1)).tactic is Tactic.INLINE
    far = only(moved(code, 0x0200_0000))
    assert far.tactic is Tactic.TRAP
    assert far.refused == "its fixup is out of a branch's reach, and there is no padding for a veneer of 8 bytes"


def test_ten_thousand_changes_of_state_are_told_apart() -> None:
    marks = tuple((f"${'at'[n & 1]}", BASE + 4 * n, 0) for n in range(10_000))
    code = (struct.pack("<I", 0xE10F_0000) + thumb.packed(MRS_R1)) * 5_000
    assert [site.state for site in scan(elf(code, marks))] == ["a32", "t32"] * 5_000


class Cpu:
    """User mode with a page of T32 code and one unit of the window."""

    def __init__(self) -> None:
        self.engine = UnicornArmEngine()
        self.memory = memoryview(mmap.mmap(-1, 1 << 20))
        words = self.memory.cast("I")
        self.engine.map_memory(0x4000_0000, self.memory)
        self.shared = self.memory[0x3_0000:0x3_1000].cast("I")
        for virtual, table in ((BASE, 0x8000), (BASE + FAR, 0x8000), (abi.ARMV7.base, 0x8400)):
            words[0x4000 // 4 + (virtual >> 20)] = 0x4000_0000 + table | 1
        words[0x8000 // 4], words[0x8400 // 4], words[0x8404 // 4] = 0x4001_022E, 0x4002_022E, 0x4003_003F
        self.engine.enable_translation(FULL, 0x00C5_0079)
        self.engine.set_domains(1)
        self.engine.set_root(0x4000_4000)

    def run(
        self, image: Image, gpr: dict[int, int] | None = None, flags: int = NZCV, base: int = BASE
    ) -> tuple[str, int, int]:
        """Run a rewritten image to its SVC; how it ended, at which PC, and the real CPSR."""
        whole, made = bytearray(image.view(base, 0x40)), planned(image)
        for site in made.sites:
            if site.instruction != "SVC (T32)":
                whole[site.start - base : site.start - base + len(site.new)] = site.new
        for change in made.changes:
            whole[change.address - base : change.address - base + len(change.new)] = change.new
        self.memory[0x1_0000 : 0x1_0000 + len(whole)] = bytes(whole)
        for fixup in made.fixups:
            at = 0x2_0000 + fixup.address - abi.ARMV7.base
            self.memory[at : at + len(fixup.code)] = fixup.code
        self.engine.flush_code()
        registers, seen = self.engine.registers, []
        registers.cpsr = USR | T | flags
        for number in range(15):
            registers.gpr[number] = (gpr or {}).get(number, 0x100 + number)
        registers.pc = base

        def handler(exit_: Exit) -> None:
            seen.append(
                "done" if exit_.kind is ExitKind.SYSTEM_CALL else "call" if exit_.vector == UNDEFINED else "lost"
            )
            self.engine.stop()

        self.engine.run(handler)
        return seen[0], registers.pc, registers.cpsr

    def untouched(self, **but: int) -> bool:
        now = {f"r{number}": int(value) for number, value in enumerate(self.engine.registers.gpr[:15])}
        return now == {f"r{number}": 0x100 + number for number in range(15)} | but


@pytest.fixture
def cpu() -> Iterator[Cpu]:
    made = Cpu()
    made.shared[abi.ARM_STATUS // 4] = SVC_MODE - USR
    yield made
    made.engine.close()


def padded(*instructions: int) -> Image:
    code = thumb.packed(*[thumb.NOP] * 8, *instructions, SVC)
    return elf(code + thumb.packed(thumb.NOP) * (32 - len(code) // 2), entry=BASE | 1)


@pytest.mark.parametrize(("site", "before", "after"), [(CPSID, 0, 0x80), (CPSIE, 0x80, 0)])
@pytest.mark.parametrize("first", [False, True])
def test_the_mask_is_changed_and_the_moved_neighbour_does_its_work(
    site: int, before: int, after: int, first: bool, cpu: Cpu
) -> None:
    cpu.shared[0] = before
    ended, pc, status = cpu.run(padded(ADDS, site) if first else padded(site, ADDS))
    assert (ended, pc, status & T) == ("done", BASE + 22, T)
    assert cpu.shared[0] == after
    assert status & 0xF000_0000 == 0  # the adds
    assert cpu.untouched(r0=0x101)


def test_a_wide_mask_change_leaves_all_else(cpu: Cpu) -> None:
    assert cpu.run(padded(0xF3AF_8640)) == ("done", BASE + 22, USR | T | NZCV)  # cpsid.w i
    assert cpu.shared[0] == 0x80
    assert cpu.untouched()


def test_a_status_read_shows_the_virtual_mode_and_the_real_flags(cpu: Cpu) -> None:
    assert cpu.run(padded(MRS_R1)) == ("done", BASE + 22, USR | T | NZCV)
    assert cpu.untouched(r1=NZCV | SVC_MODE)


def test_a_status_write_changes_the_mask_or_calls(cpu: Cpu) -> None:
    assert cpu.run(padded(MSR_R0), {0: SVC_MODE | 0x80})[0] == "done"
    assert cpu.shared[0] == 0x80
    assert cpu.run(padded(MSR_R0), {0: 0x1F})[0] == "call"


@pytest.mark.parametrize(("flags", "read"), [(0x4000_0000, True), (0, False)])
def test_last_in_an_it_block_a_fixup_runs_only_if_the_condition_holds(flags: int, read: bool, cpu: Cpu) -> None:
    assert cpu.run(padded(IT_EQ, MRS_R1), flags=flags) == ("done", BASE + 24, USR | T | flags)
    assert cpu.untouched(r1=flags | SVC_MODE if read else 0x101)


@pytest.mark.parametrize("odd", [False, True])
def test_a_site_out_of_reach_goes_by_a_veneer_of_whole_words(odd: bool, cpu: Cpu) -> None:
    code = thumb.packed(*[thumb.NOP] * (8 + odd), MRS_R1, SVC, BX_LR)
    code += thumb.packed(thumb.NOP) * (32 - len(code) // 2)
    image = elf(code, entry=BASE + FAR | 1, base=BASE + FAR)
    assert only_site(image).placing is Placing.PADDING
    assert cpu.run(image, base=BASE + FAR) == ("done", BASE + FAR + 22 + 2 * odd, USR | T | NZCV)
    assert cpu.untouched(r1=NZCV | SVC_MODE)


def only_site(image: Image) -> PlannedSite:
    (site,) = [one for one in planned(image).sites if one.instruction != "SVC (T32)"]
    return site


@pytest.mark.parametrize("masks", [CPSID, 0xF3AF_8640])
def test_a_status_read_and_the_mask_behind_it_are_one_fixup(masks: int, cpu: Cpu) -> None:
    cpu.shared[0] = 0
    image = padded(MRS_R1, masks)
    read, mask, _ = planned(image).sites
    assert (read.tactic, read.placing, mask.tactic) == (Tactic.INLINE, Placing.CLUSTER, Tactic.COVERED)
    behind = BASE + (24 if masks == CPSID else 26)
    assert cpu.run(image) == ("done", behind, USR | T | NZCV)
    assert cpu.shared[0] == 0x80
    assert cpu.untouched(r1=NZCV | SVC_MODE)


def test_a_branch_between_the_two_keeps_them_apart() -> None:
    read, mask, *_ = planned(padded(MRS_R1, CPSID, ADDS, 0xE7FC)).sites  # b to the cpsid
    assert (read.placing, mask.tactic) == (Placing.IN_PLACE, Tactic.INLINE)


@pytest.mark.parametrize(
    ("word", "read", "stored"),
    [
        (0xF851_0E04, 0x8765_4321, None),
        (0xF811_0E04, 0x21, None),
        (0xF831_0E04, 0x4321, None),
        (0xF911_0E07, 0xFFFF_FF87, None),
        (0xF931_0E06, 0xFFFF_8765, None),
        (0xF841_0E04, None, 0x1234_ABCD),
        (0xF801_0E04, None, 0x8765_43CD),
        (0xF821_0E04, None, 0x8765_ABCD),
    ],
)
def test_an_access_as_user_is_done_below_the_kernels_pages_and_calls_above(
    word: int, read: int | None, stored: int | None, cpu: Cpu
) -> None:
    cpu.shared[abi.ARM_USER_LIMIT // 4] = 0xF000_0000
    image = padded(word)
    [site] = [one for one in planned(image).sites if one.instruction != "SVC (T32)"]
    assert (site.tactic, site.placing) == (Tactic.INLINE, Placing.IN_PLACE)
    data = cpu.memory[0x3_0800:0x3_0820].cast("I")
    data[1] = 0x8765_4321
    at = abi.ARMV7.base + 0x1800  # in a page that may be read and written
    gpr = {0: 0x1234_ABCD, 1: at}
    assert cpu.run(image, gpr) == ("done", BASE + 22, USR | T | NZCV)
    assert cpu.untouched(r0=read if read is not None else 0x1234_ABCD, r1=at)
    assert data[1] == (stored if stored is not None else 0x8765_4321)
    cpu.shared[abi.ARM_USER_LIMIT // 4] = at + 4
    assert cpu.run(image, gpr)[0] == "call"
    assert cpu.untouched(r0=0x1234_ABCD, r1=at)


@pytest.mark.parametrize("word", [0xF85F_0E04, 0xF851_FE04])
def test_an_access_as_user_with_pc_in_it_has_no_fixup(word: int) -> None:
    from bt.tactics.arm.templates import access_as_user_t32

    assert access_as_user_t32(word) is None
