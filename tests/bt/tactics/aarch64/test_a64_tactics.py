"""A64's ladder: what each instruction gets, by which strategy, and that its fixups are what they say."""

from __future__ import annotations

import struct

import pytest
from capstone import CS_ARCH_ARM64, CS_MODE_ARM, Cs

from bt.pagescan import PAGE
from bt.tactics.aarch64.tactics import A64Tactics
from bt.tactics.registry import tactics_of
from bt.tactics.tactics import Choice, CodePage, OutOfReach, Placing, Tactic
from emulator.isa.aarch64.encoding import HVC, branch
from paravirt import abi

TEXT = 0xFFFF_8000_0801_0000
FAR = 0xFFFF_8000_4000_0000
MRS_SP_EL0, MRS_TPIDR_EL1, MSR_SP_EL0 = 0xD538_4105, 0xD538_D083, 0xD518_4105
LDTR, LDTR_SP, TLBI = 0xF840_0828, 0xF840_0BE8, 0xD508_83E3
ERET, DAIFSET, DC_ZVA, MRS_TPIDR_EL0, MRS_PMCR = 0xD69F_03E0, 0xD503_42DF, 0xD50B_7423, 0xD53B_D041, 0xD53B_9C01


def tactics() -> A64Tactics:
    found = tactics_of("aarch64")
    assert isinstance(found, A64Tactics)
    return found


def choose(word: int, strategy: str, at: int = TEXT) -> Choice:
    """What a word at offset 8 of a page gets."""
    words = [0xD503_201F] * (PAGE // 4)
    words[2] = word
    code = struct.pack(f"<{PAGE // 4}I", *words)
    scan = tactics().scan_page(code, b"", 0)
    ground = tactics().ladder(strategy, None).survey(CodePage(at, -1, code, b"", scan, None))
    [site] = scan.sites
    return ground.choose(site, strategy)


@pytest.mark.parametrize(
    ("word", "trap", "hypercall", "inline", "auto"),
    [
        (MRS_SP_EL0, Tactic.NATIVE, Tactic.HYPERCALL, Tactic.REPLACED, Tactic.REPLACED),
        (MRS_TPIDR_EL1, Tactic.NATIVE, Tactic.HYPERCALL, Tactic.REPLACED, Tactic.REPLACED),
        (MSR_SP_EL0, Tactic.NATIVE, Tactic.HYPERCALL, Tactic.NATIVE, Tactic.NATIVE),
        (DAIFSET, Tactic.NATIVE, Tactic.HYPERCALL, Tactic.SAME, Tactic.SAME),
        (LDTR, Tactic.TRAP, Tactic.HYPERCALL, Tactic.INLINE, Tactic.INLINE),
        (LDTR_SP, Tactic.TRAP, Tactic.HYPERCALL, Tactic.TRAP, Tactic.TRAP),
        (TLBI, Tactic.NATIVE, Tactic.HYPERCALL, Tactic.INLINE, Tactic.INLINE),
        (ERET, Tactic.NATIVE, Tactic.HYPERCALL, Tactic.NATIVE, Tactic.NATIVE),
        (DC_ZVA, Tactic.SAME, Tactic.SAME, Tactic.SAME, Tactic.SAME),
        (MRS_TPIDR_EL0, Tactic.TRAP, Tactic.HYPERCALL, Tactic.TRAP, Tactic.TRAP),
        (MRS_PMCR, Tactic.TRAP, Tactic.HYPERCALL, Tactic.TRAP, Tactic.TRAP),
    ],
)
def test_the_ladder(word: int, trap: Tactic, hypercall: Tactic, inline: Tactic, auto: Tactic) -> None:
    found = {strategy: choose(word, strategy) for strategy in ("trap", "hypercall", "inline", "auto")}
    assert [choice.tactic for choice in found.values()] == [trap, hypercall, inline, auto]
    assert all(choice.reason for choice in found.values())


def test_a_better_tactic_is_refused_with_a_reason() -> None:
    assert "stack pointer" in choose(LDTR_SP, "inline").refused
    assert "exit as well" in choose(ERET, "auto").refused
    assert "out of a branch's reach" in choose(LDTR, "inline", FAR).refused


def test_another_register_is_read_into_the_same_one() -> None:
    assert struct.unpack("<I", choose(MRS_SP_EL0, "inline").code) == (0xD53B_D065,)  # mrs x5, tpidrro_el0
    assert struct.unpack("<I", choose(MRS_TPIDR_EL1, "inline").code) == (0xD53B_D043,)  # mrs x3, tpidr_el0


def disassemble(code: bytes, address: int) -> list[str]:
    return [f"{one.mnemonic} {one.op_str}" for one in Cs(CS_ARCH_ARM64, CS_MODE_ARM).disasm(code, address)]


def test_an_unprivileged_load_is_done_for_the_lower_half_alone() -> None:
    choice = choose(LDTR, "inline")
    assert choice.draft is not None
    fixup, [patch] = choice.draft.place(abi.AARCH64.base, TEXT)
    assert disassemble(fixup.code, fixup.address) == [
        "tbz x1, #0x37, #0xffff800007e00008",
        "hvc #0x7e74",
        "ldtr x8, [x1]",
        "b #0xffff80000801000c",
    ]
    assert disassemble(patch.code, TEXT + patch.offset) == ["b #0xffff800007e00000"]
    [(where, call)] = fixup.hypercalls.items()
    assert (where, call.site, call.instruction) == (fixup.address + 4, TEXT + 8, struct.pack("<I", LDTR))
    assert (choice.placing, choice.draft.clobbers) == (Placing.IN_PLACE, ())


def test_an_invalidation_is_left_out_where_nothing_was_mapped_and_uses_up_one_register() -> None:
    choice = choose(TLBI, "inline")
    assert choice.draft is not None
    fixup, _ = choice.draft.place(abi.AARCH64.base + 0x1000, TEXT)
    code = disassemble(fixup.code, fixup.address)
    assert [line.split()[0] for line in code] == ["msr", "adrp", "ldr", "eor", "cbz", "mrs", "hvc", "mrs", "b"]
    assert code[1] == f"adrp x16, #{abi.AARCH64.shared_page:#x}"
    assert code[2] == f"ldr x16, [x16, #{abi.AARCH64_UNMAPPED:#x}]"
    assert code[4].endswith(f"#{fixup.address + 7 * 4:#x}")
    assert choice.draft.clobbers == (abi.AARCH64_SCRATCH,)


@pytest.mark.parametrize(
    ("word", "distance"),
    [
        (0x1400_0004, 16),
        (0x97FF_FFFF, -4),
        (0x5400_0041, 8),
        (0x34FF_FFE0, -4),
        (0xB500_0080, 16),
        (0x3600_0060, 12),
        (0xB707_FFE5, -4),
    ],
)
def test_direct_branches_are_found_with_their_targets(word: int, distance: int) -> None:
    import numpy as np

    code = np.array([0xD503_201F, word, 0xD65F_03C0, 0xD61F_0000], np.uint32)
    assert tactics().branches(code).tolist() == [4 + distance]


def test_a_branch_reaches_128_mib_both_ways_and_no_further() -> None:
    for target in (TEXT - (128 << 20), TEXT + (128 << 20) - 4):
        [line] = disassemble(tactics().branch(TEXT, target), TEXT)
        assert line == f"b #{target:#x}"
    for target in (TEXT - (128 << 20) - 4, TEXT + (128 << 20), TEXT + 2):
        with pytest.raises(OutOfReach):
            tactics().branch(TEXT, target)
    with pytest.raises(ValueError, match="out of a branch's reach"):
        branch(0, 1 << 40)


def test_the_planted_trap_is_a_call_that_is_undefined_in_user_mode() -> None:
    assert struct.unpack("<I", choose(MRS_TPIDR_EL0, "inline").code)[0] & 0xFFE0_001F == HVC
