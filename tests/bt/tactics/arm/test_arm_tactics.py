"""Tactics of A32: each fixup, run in User mode, does what its instruction does; code is told from data."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator

import numpy as np
import pytest

from bt.pagescan import PAGE
from bt.tactics.arm.tactics import ArmTactics
from bt.tactics.arm.words import NOP, UDF, branch_word, literal_words, packed, shared_word, sparse_words
from bt.tactics.registry import tactics_of
from bt.tactics.tactics import Arena, Choice, CodePage, OutOfReach, Placing, Tactic
from bt.textmap import PristinePage
from emulator.engine.arm import DATA_ABORT, FULL, PREFETCH_ABORT, UNDEFINED, USR
from emulator.engine.exit import Exit, ExitKind
from emulator.engine.unicorn.arm import UnicornArmEngine
from paravirt import abi
from paravirt.translator import Fixup

HOME, FAR = 0xC030_0000, 0x0800_0000
WINDOW = abi.ARMV7.base
SVC_MODE = 0x13
NZCV = 0xA000_0000


def tactics() -> ArmTactics:
    made = tactics_of("armv7")
    assert isinstance(made, ArmTactics)
    return made


def filled(code: bytes, word: int, size: int = PAGE) -> bytes:
    """Code, and the same word behind it."""
    return code + packed(word) * ((size - len(code)) // 4)


def page_of(*words: int) -> CodePage:
    code = filled(packed(*words), NOP)
    return CodePage(HOME, -1, code, b"", tactics().scan_page(code, b"", 0), None)


def choose(word: int, strategy: str = "inline") -> Choice:
    page = page_of(NOP, word, NOP)
    (site,) = (site for site in page.scan.sites if site.offset == 4)
    return tactics().ladder(strategy, None).survey(page).choose(site, strategy)


class Cpu:
    """User mode with a page of code, a unit of the window, and a page of data that only some may touch."""

    def __init__(self) -> None:
        self.engine = UnicornArmEngine()
        self.memory = memoryview(mmap.mmap(-1, 1 << 20))
        self.words = self.memory.cast("I")
        self.engine.map_memory(0x4000_0000, self.memory)
        self.shared = self.memory[0x3_0000:0x3_1000].cast("I")
        for virtual, table in ((HOME, 0x8000), (HOME + FAR, 0x8000), (WINDOW, 0x8400), (0x1000_0000, 0x8800)):
            self.words[0x4000 // 4 + (virtual >> 20)] = 0x4000_0000 + table | 1
        self.words[0x8000 // 4] = 0x4001_0000 | 0x22E  # code: read-only
        self.words[0x8400 // 4] = 0x4002_0000 | 0x22E
        self.guard(False)
        self.words[0x8800 // 4] = 0x4004_0000 | 0x3E
        self.engine.enable_translation(FULL, 0x00C5_0079)
        self.engine.set_domains(1)
        self.engine.set_root(0x4000_4000)

    def guard(self, guarded: bool) -> None:
        self.words[0x8404 // 4] = 0x4003_0000 | (0x22F if guarded else 0x3F)
        self.engine.flush_tlb()

    def run(self, word: int, gpr: dict[int, int] | None = None, flags: int = NZCV) -> tuple[str, int, int]:
        """Run a site that holds `word` with its fixup; how it ended, at which PC, and the real CPSR."""
        choice = choose(word)
        assert choice.draft is not None
        arena = Arena.of(tactics().ladder("inline", None))
        address = arena.take(choice.draft.size)
        assert address is not None
        fixup, patches = choice.draft.place(address, HOME)
        return self.execute(fixup, patches[0].code, gpr or {}, flags)

    def execute(
        self, fixup: Fixup, branch: bytes, gpr: dict[int, int], flags: int, whole: bytes = b"", home: int = HOME
    ) -> tuple[str, int, int]:
        self.memory[0x1_0000:0x1_1000] = whole or filled(packed(NOP) + branch + packed(0xEF00_0000), UDF)
        at = 0x2_0000 + fixup.address - WINDOW
        self.memory[at : at + len(fixup.code)] = fixup.code
        self.engine.flush_code()
        registers, seen = self.engine.registers, []
        registers.cpsr = USR | flags
        for number in range(15):
            registers.gpr[number] = gpr.get(number, 0x100 + number)
        registers.pc = home

        def handler(exit_: Exit) -> None:
            kinds = {UNDEFINED: "call", DATA_ABORT: "abort", PREFETCH_ABORT: "lost"}
            seen.append("done" if exit_.kind is ExitKind.SYSTEM_CALL else kinds[exit_.vector])
            self.engine.stop()

        self.engine.run(handler)
        return seen[0], registers.pc, registers.cpsr

    def registers(self) -> list[int]:
        return [int(value) for value in self.engine.registers.gpr[:15]]


@pytest.fixture
def cpu() -> Iterator[Cpu]:
    made = Cpu()
    made.shared[abi.ARM_STATUS // 4] = SVC_MODE - USR
    yield made
    made.engine.close()


def untouched(cpu: Cpu, **but: int) -> bool:
    wanted = {f"r{number}": 0x100 + number for number in range(15)} | but
    return {f"r{number}": value for number, value in enumerate(cpu.registers())} == wanted


@pytest.mark.parametrize(("word", "before", "after"), [(0xF10C_0080, 0, 0x80), (0xF108_0080, 0x80, 0)])
def test_the_interrupt_mask_is_changed_and_nothing_else(word: int, before: int, after: int, cpu: Cpu) -> None:
    cpu.shared[0] = before
    assert cpu.run(word) == ("done", HOME + 12, USR | NZCV)
    assert cpu.shared[0] == after
    assert untouched(cpu)


@pytest.mark.parametrize("target", [0, 3, 12, 14])
def test_a_status_read_shows_the_virtual_mode_and_mask_and_the_real_flags(target: int, cpu: Cpu) -> None:
    for masked in (0, 0x80):
        cpu.shared[0] = masked
        assert cpu.run(0xE10F_0000 | target << 12)[0] == "done"
        assert untouched(cpu, **{f"r{target}": NZCV | SVC_MODE | masked})


@pytest.mark.parametrize("source", [0, 1, 2, 7, 14])
def test_a_status_write_changes_the_mask_and_leaves_flags_and_registers(source: int, cpu: Cpu) -> None:
    for value, mask in ((SVC_MODE | 0x80, 0x80), (SVC_MODE, 0)):
        assert cpu.run(0xE121_F000 | source, {source: value})[::2] == ("done", USR | NZCV)
        assert cpu.shared[0] == mask
        assert untouched(cpu, **{f"r{source}": value})


@pytest.mark.parametrize("value", [0x12, 0x1F, SVC_MODE | 0x40])
def test_a_status_write_that_changes_mode_or_f_calls_with_all_as_at_its_site(value: int, cpu: Cpu) -> None:
    cpu.shared[0] = 0x80
    ended, pc, status = cpu.run(0xE121_F005, {5: value})
    assert (ended, status) == ("call", USR | NZCV)
    assert WINDOW <= pc < WINDOW + PAGE
    assert cpu.shared[0] == 0x80
    assert untouched(cpu, r5=value)


def test_while_an_interrupt_waits_the_first_store_exits_with_all_as_at_the_site(cpu: Cpu) -> None:
    cpu.shared[0] = 0x80
    cpu.guard(True)
    for word in (0xF108_0080, 0xF10C_0080, 0xE121_F005, 0xE10F_3000):
        ended, pc, status = cpu.run(word, {5: SVC_MODE})
        assert (ended, pc, status) == ("abort", WINDOW + abi.ARM_UNIT_FIRST, USR | NZCV)
        assert untouched(cpu, r5=SVC_MODE)
        assert cpu.shared[0] == 0x80


def test_a_conditional_instruction_keeps_its_condition(cpu: Cpu) -> None:
    equal, less = 0x4000_0000, 0x8000_0000
    for flags, value in ((equal, equal | SVC_MODE), (less, 0x103)):
        assert cpu.run(0x010F_3000, flags=flags)[0] == "done"  # mrseq r3, cpsr
        assert cpu.registers()[3] == value


def test_the_thread_register_of_user_mode_is_in_the_shared_page(cpu: Cpu) -> None:
    cpu.shared[abi.ARM_THREAD // 4] = 0x1234
    assert cpu.run(0xEE1D_7F50)[0] == "done"
    assert untouched(cpu, r7=0x1234)
    assert cpu.run(0xEE0D_7F50)[0] == "done"
    assert cpu.shared[abi.ARM_THREAD // 4] == 0x107


def test_an_unprivileged_access_is_done_below_the_kernels_pages_and_calls_above(cpu: Cpu) -> None:
    cpu.words[0x4_0010 // 4] = 0x77
    cpu.shared[abi.ARM_USER_LIMIT // 4] = 0x2000_0000
    assert cpu.run(0xE4B1_0004, {1: 0x1000_0010})[::2] == ("done", USR | NZCV)  # ldrt r0, [r1], #4
    assert untouched(cpu, r0=0x77, r1=0x1000_0014)
    assert cpu.run(0xE4A1_0004, {1: 0x1000_0020})[0] == "done"  # strt
    assert cpu.words[0x4_0020 // 4] == 0x100
    cpu.shared[abi.ARM_USER_LIMIT // 4] = 0x1000_0000
    assert cpu.run(0xE4B1_0004, {1: 0x1000_0010})[::2] == ("call", USR | NZCV)
    assert untouched(cpu, r1=0x1000_0010)


@pytest.mark.parametrize(
    ("word", "stands"),
    [
        (0xEE1D_3F90, 0xEE1D_3F70),  # TPIDRPRW is read from TPIDRURO
        (0xEE1D_3F70, 0xEE1D_3F50),  # TPIDRURO from TPIDRURW
        (0xEE0D_3F70, 0xEE0D_3F50),
        (0xEE07_0F3B, NOP),  # DCCMVAU
        (0xEE07_0F15, NOP),  # ICIALLU
    ],
)
def test_what_another_word_can_do_is_replaced_in_place(word: int, stands: int) -> None:
    choice = choose(word)
    assert (choice.tactic, choice.code) == (Tactic.REPLACED, packed(stands))


@pytest.mark.parametrize("word", [0xE320_F003, 0xE1B0_F00E, 0xE8FD_8000, 0xF10C_01C0, 0xE14F_0000, 0xE321_F0D3])
def test_what_has_no_fixup_is_trapped_with_a_reason(word: int) -> None:
    choice = choose(word)
    assert (choice.tactic, choice.code) == (Tactic.TRAP, packed(UDF))
    assert choice.refused


def test_what_traps_by_itself_is_left_as_it_is() -> None:
    for strategy in ("trap", "inline"):
        assert choose(0xEE11_0F10, strategy).tactic is Tactic.NATIVE


def test_a_hypercall_stands_for_the_whole_instruction_and_says_what_it_clobbers() -> None:
    choice = choose(0xE14F_0000, "hypercall")  # mrs r0, spsr
    assert (choice.tactic, choice.placing) == (Tactic.HYPERCALL, Placing.IN_PLACE)
    assert choice.draft is not None
    fixup, _ = choice.draft.place(WINDOW + 0x40, HOME)
    (call,) = fixup.hypercalls.values()
    assert (call.site, call.instruction, call.resume) == (HOME + 4, packed(0xE14F_0000), WINDOW + 0x44)
    inline = choose(0xE121_F003)
    assert inline.draft is not None
    assert inline.draft.clobbers == ("shared page, scratch word 0", "shared page, scratch word 1")


def test_fixups_lie_in_the_code_pages_of_units_only() -> None:
    arena = Arena.of(tactics().ladder("inline", None))
    places = [arena.take(68) for _ in range(500)]
    assert None not in places
    for place in places:
        assert place is not None
        within = (place - WINDOW) % abi.ARM_UNIT
        assert abi.ARM_UNIT_FIRST <= within <= abi.ARM_UNIT_END - 68
    assert places == sorted(set(places), key=lambda place: place or 0)


def test_a_branch_out_of_reach_and_a_word_out_of_reach_are_refused() -> None:
    with pytest.raises(OutOfReach):
        branch_word(0xC000_0000, 0xC000_0000 + 8 + (1 << 25))
    assert branch_word(0xC000_0000, 0xC000_0000 + 4 + (1 << 25)) >> 24 == 0xEA
    with pytest.raises(OutOfReach):
        shared_word(True, 0, WINDOW, 0x40)


def test_literal_pools_are_no_code_and_code_behind_a_branch_is() -> None:
    code = np.array([0xE59F_0000, 0xE12F_FF1E, 0xF10C_0080, 0xF10C_0080], dtype=np.uint32)
    assert literal_words(code).tolist() == [False, False, True, False]
    code[1] = NOP  # execution runs into the word: it is code that is read
    assert literal_words(code).tolist() == [False, False, False, False]


def test_a_word_among_random_data_is_rather_data() -> None:
    table = np.random.default_rng(1).integers(0, 1 << 32, 64, dtype=np.uint64).astype(np.uint32)
    table[30] = 0xE4B1_0004
    code = np.full(64, NOP, dtype=np.uint32)
    code[30] = 0xE4B1_0004
    assert sparse_words(table)[30]
    assert not sparse_words(code)[30]
    page = filled(struct.pack("<64I", *table.tolist()), NOP)
    assert all(site.offset != 120 for site in tactics().scan_page(page, b"", 0).sites)


def test_a_rescan_gives_what_a_scan_gives() -> None:
    old = page_of(NOP, 0xF10C_0080, NOP, 0xE10F_0000)
    new = filled(packed(NOP, NOP, 0xF108_0080, 0xE10F_0000), NOP)
    assert tactics().rescan_page(old.code, old.scan, new) == tactics().scan_page(new, b"", 0)


def known_page(address: int, code: bytes, targets: int = 0) -> CodePage:
    scan = tactics().scan_page(code, b"", 0)
    return CodePage(address, address, code, b"", scan, PristinePage(scan.boundaries, targets, 0, scan.sites, 0))


def test_a_status_read_and_the_mask_behind_it_are_one_fixup(cpu: Cpu) -> None:
    code = filled(packed(NOP, 0xE10F_1000, 0xF10C_0080), NOP)
    page = known_page(HOME, code)
    choice = tactics().ladder("inline", None).survey(page).choose(page.scan.sites[0], "inline")
    assert (choice.tactic, choice.placing, choice.end - choice.start) == (Tactic.INLINE, Placing.CLUSTER, 8)
    assert choice.draft is not None
    fixup, [patch] = choice.draft.place(WINDOW + abi.ARM_UNIT_FIRST, HOME)
    assert patch.code[4:] == packed(UDF)  # who is sent between the two meets a trap there
    cpu.shared[0] = 0
    assert cpu.execute(fixup, patch.code, {}, NZCV) == ("done", HOME + 16, NZCV | USR)
    assert cpu.shared[0] == 0x80
    assert untouched(cpu, r1=NZCV | SVC_MODE)
    led = known_page(HOME, code, targets=1 << 8)
    alone = tactics().ladder("inline", None).survey(led).choose(led.scan.sites[0], "inline")
    assert (alone.tactic, alone.placing) == (Tactic.INLINE, Placing.IN_PLACE)


def test_a_site_out_of_reach_goes_by_a_veneer_in_padding_and_comes_back(cpu: Cpu) -> None:
    code = bytearray(filled(packed(NOP, 0xE10F_1000, 0xEF00_0000, 0xE12F_FF1E), NOP))
    page = known_page(HOME + FAR, bytes(code))
    site = next(one for one in page.scan.sites if one.offset == 4)
    choice = tactics().ladder("inline", None).survey(page).choose(site, "inline")
    assert (choice.tactic, choice.placing) == (Tactic.INLINE, Placing.PADDING)
    assert choice.draft is not None
    fixup, patches = choice.draft.place(WINDOW + abi.ARM_UNIT_FIRST, HOME + FAR)
    for patch in patches:
        code[patch.offset : patch.offset + len(patch.code)] = patch.code
    assert len(patches) == 2
    assert cpu.execute(fixup, b"", {}, NZCV, bytes(code), HOME + FAR) == ("done", HOME + FAR + 12, NZCV | USR)
    assert untouched(cpu, r1=NZCV | SVC_MODE)


def test_without_padding_a_site_out_of_reach_traps_and_says_so() -> None:
    page = known_page(HOME + FAR, filled(packed(NOP, 0xE10F_1000), 0xE281_1001))
    choice = tactics().ladder("inline", None).survey(page).choose(page.scan.sites[0], "inline")
    assert choice.tactic is Tactic.TRAP
    assert "no padding for a veneer" in choice.refused
