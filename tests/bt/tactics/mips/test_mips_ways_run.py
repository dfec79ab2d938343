"""Fixups of MIPS32, executed: Status by a jump to a fixup, calls, delay slots, far windows, and interrupts meanwhile.

Small guests run under the hypervisor once with traps alone and once rewritten; registers and Status must be the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from bt.image import Image, from_bytes
from bt.loadtime import LoadTimeTranslator
from bt.planner import plan
from bt.scan import scan
from bt.tactics.tactics import Placing, Tactic
from emulator.isa.mips import registers as r
from paravirt import abi
from tests.bt.image.image_files import Part, make_elf
from tests.paravirt.mips.test_mips_hypervisor import (
    A0,
    BREAK,
    CODE,
    DATA,
    DI,
    EHB,
    EI,
    END,
    ERET,
    HANDLER,
    KSEG0,
    NOP,
    S0,
    SYSCALL,
    T0,
    V0,
    Guest,
    addiu,
    address,
    lui,
    mfc0,
    mtc0,
    store,
)  # fmt: skip

STATUS, CAUSE, EPC, ENTRY_HI = 12, 13, 14, 10
V1, T1, T2, T3, RA = 3, 9, 10, 11, 31
LEFT = (8, 9, 10)
"""Registers that fixups borrow."""


def image_of(words: Sequence[int], order: str = "<") -> Image:
    data = b"".join(word.to_bytes(4, "little" if order == "<" else "big") for word in (*words, *END))
    text = Part(".text", data.ljust(64, b"\0"), KSEG0 + CODE, CODE, 5)
    return from_bytes(make_elf([text], KSEG0 + CODE, machine=8, bits=32, order=order), "guest")


def run(mode: str, *words: int, handler: Sequence[int] = END) -> tuple[tuple[int, ...], Guest]:
    guest = Guest(LoadTimeTranslator(mode, image_of(words)))
    try:
        guest.put(HANDLER, *handler)
        seen = guest.run(*words)
        return (*seen, guest.vcpu.read("Status"), guest.vcpu.read("EntryHi")), guest
    finally:
        guest.machine.close()


def exits(guest: Guest, route: str) -> int:
    return sum(count for (_what, by), count in guest.hypervisor.exits.counts.items() if by == route)


def same(
    *words: int, modes: Sequence[str] = ("inline", "hypercall"), handler: Sequence[int] = END
) -> tuple[tuple[int, ...], list[Guest]]:
    """The registers, which are those of the guest with traps alone by every mode, and the guests of the modes."""
    expected, _ = run("trap", *words, handler=handler)
    found = [run(mode, *words, handler=handler) for mode in modes]
    assert [seen for seen, _ in found] == [expected] * len(found)
    return expected, [guest for _, guest in found]


def tactics_of(*words: int, mode: str = "inline", order: str = "<") -> list[tuple[Tactic, Placing]]:
    image = image_of(words, order)
    sites = plan(image, scan(image), mode).sites
    return [(site.tactic, site.placing) for site in sites if site.address < KSEG0 + CODE + 4 * len(words)]


@pytest.mark.parametrize("target", [V0, *LEFT])
def test_status_is_read_without_an_exit_and_the_word_behind_it_is_done(target: int) -> None:
    words = (addiu(A0, 0, 1), mfc0(target, STATUS), addiu(A0, A0, 2), addiu(V1, target, 0))
    assert tactics_of(*words) == [(Tactic.INLINE, Placing.DISPLACED)]
    _, [guest] = same(*words, modes=["inline"])
    assert "READ_SYSTEM_REGISTER" not in {what for what, _ in guest.hypervisor.exits.counts}


def test_a_site_before_a_branch_takes_the_word_before_it() -> None:
    words = (addiu(A0, 0, 1), addiu(A0, A0, 2), mfc0(V0, STATUS), 0x1000_0002, addiu(A0, A0, 4), NOP, NOP)
    assert tactics_of(*words) == [(Tactic.INLINE, Placing.DISPLACED)]
    same(*words)


def test_a_load_before_a_site_that_faults_in_the_fixup_faults_where_it_stood() -> None:
    words = (addiu(A0, 0, 4), lui(T0, 0x0040), 0x8D03_0008, mfc0(V0, STATUS), 0x1000_0001, NOP, NOP)
    assert tactics_of(*words) == [(Tactic.INLINE, Placing.DISPLACED)]
    guest = Guest(LoadTimeTranslator("inline", image_of(words)))
    guest.run(*words)
    [(code, pc, where)] = guest.exceptions
    guest.machine.close()
    assert (code, pc, where) == (r.TLBL, KSEG0 + CODE + 8, 0x0040_0008)


@pytest.mark.parametrize(
    "new",
    [
        0,
        r.STATUS_IE,
        r.STATUS_EXL,
        3,
        r.STATUS_CU0,
        r.STATUS_CU0 | 0x13,
        0x8000,
        r.STATUS_CU1,
        r.STATUS_EXL | 0x10,
        0x7,
    ],
)
def test_status_is_written_and_only_what_changes_the_processor_calls(new: int) -> None:
    words = (
        NOP, mtc0(0, STATUS), EHB, *address(T1, new), *address(A0, 0x1234), mtc0(T1, STATUS), EHB,
        mfc0(V0, STATUS), EHB, mtc0(0, STATUS), EHB,
    )  # fmt: skip
    assert {tactic for tactic, _ in tactics_of(*words)} == {Tactic.INLINE}
    _, [inline, _] = same(*words)
    by_itself = not new & ~(abi.MIPS_STATUS_BITS | r.STATUS_IE)
    assert exits(inline, "hypercall") == (0 if by_itself else 2)


def test_a_write_that_leaves_kernel_mode_calls() -> None:
    """KSU is user and EXL is clear: the next instruction is fetched in user mode, from where there is nothing."""
    words = (NOP, mtc0(0, STATUS), EHB, addiu(T1, 0, r.STATUS_UM), mtc0(T1, STATUS), EHB, NOP)
    handler = (mfc0(V0, CAUSE), mfc0(A0, EPC), *END)
    _, [inline, _] = same(*words, handler=handler)
    assert exits(inline, "hypercall") == 1
    assert inline.exceptions[0][0] == r.ADEL


@pytest.mark.parametrize("seed", range(6))
def test_any_mixture_does_what_it_does_with_traps_alone(seed: int) -> None:
    chance = random.Random(seed)
    some = (V0, V1, A0, *LEFT, T3, S0)

    def plain() -> int:
        one, two, three = chance.choice(some), chance.choice(some), chance.choice(some)
        return chance.choice((addiu(one, two, chance.getrandbits(15)), two << 21 | three << 16 | one << 11 | 0x26))

    words = [NOP, mtc0(0, STATUS), EHB]
    for register in some:
        words += address(register, chance.getrandbits(32))
    for _ in range(40):
        register = chance.choice(some)
        kind = chance.randrange(6)
        if kind == 0:
            words += [mfc0(register, STATUS), plain()]
        elif kind == 1:
            words += [plain(), mfc0(register, STATUS)]
        elif kind == 2:
            words += [
                *address(register, chance.choice((0, 1, 2, 3, 0x1000_0003, 0x8000, 0x13))),
                mtc0(register, STATUS),
            ]
        elif kind == 3:
            words += [mtc0(register, ENTRY_HI), plain(), mfc0(chance.choice(some), ENTRY_HI)]
        elif kind == 4:  # bne over one, with a site in its delay slot
            words += [0x1400_0002 | chance.choice(some) << 21, mfc0(register, STATUS), plain()]
        else:
            words += [EI if chance.randrange(2) else DI, plain(), mfc0(register, CAUSE)]
    same(*words, mtc0(0, STATUS), EHB)


@pytest.mark.parametrize(
    ("branch", "reads", "goes"),
    [
        (0x1000_0004, 0, True),  # b
        (0x1440_0004, V0, False),  # bne v0, zero
        (0x1480_0004, A0, True),  # bne a0, zero
        (0x0480_0004, A0, False),  # bltz a0
        (0x1C80_0004, A0, True),  # bgtz a0
        (0x0800_0000 | (CODE + 4 * 7 >> 2), 0, True),  # j
        (0x0C00_0000 | (CODE + 4 * 7 >> 2), 0, True),  # jal
    ],
)
def test_a_site_in_a_delay_slot_is_done_before_its_branch(branch: int, reads: int, goes: bool) -> None:
    words = (addiu(A0, 0, 5), addiu(V0, 0, 0), branch, mfc0(V1, STATUS), addiu(S0, S0, 1), addiu(S0, S0, 2), NOP, NOP)
    assert tactics_of(*words) == [(Tactic.INLINE, Placing.DISPLACED)]
    seen, _ = same(*words)
    assert (seen[S0] == 0) is goes
    if branch >> 26 == 3:
        assert seen[RA] == KSEG0 + CODE + 16


@pytest.mark.parametrize(("jump", "links"), [(0x0080_0008, False), (0x0080_F809, True)])
def test_a_site_in_the_delay_slot_of_a_jump_to_a_register_is_done_before_it(jump: int, links: bool) -> None:
    goal = KSEG0 + CODE + 4 * 6
    words = (*address(A0, goal), jump, mfc0(V1, STATUS), addiu(S0, S0, 1), NOP, addiu(T3, 0, 3))
    assert tactics_of(*words) == [(Tactic.INLINE, Placing.DISPLACED)]
    seen, _ = same(*words)
    assert (seen[S0], seen[T3]) == (0, 3)
    assert seen[RA] == (KSEG0 + CODE + 16 if links else 0)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((addiu(A0, 0, 1), 0x1460_0002, mfc0(V1, STATUS), NOP, NOP), "looks at the same register"),
        ((addiu(A0, 0, 1), 0x5440_0002, mfc0(V1, STATUS), NOP, NOP), "may skip it"),
        ((addiu(A0, 0, 1), SYSCALL, mfc0(V1, STATUS), BREAK, NOP), "may be moved"),
        ((addiu(A0, 0, 1), mfc0(V1, STATUS), EHB, 0x1000_FFFE, NOP), "a branch leads into"),
        ((addiu(A0, 0, 1), mfc0(V1, STATUS), EHB, 0x0800_0000 | (CODE + 8 >> 2), NOP), "a branch leads into"),
        ((*address(A0, KSEG0 + CODE + 16), SYSCALL, mfc0(V1, STATUS), EHB, 0x0080_0008, NOP), "a branch leads into"),
        ((mfc0(V1, STATUS), NOP), "page before"),
    ],
)
def test_where_a_jump_is_not_sound_the_reason_is_given(words: tuple[int, ...], why: str) -> None:
    image = image_of(words)
    [site] = [one for one in plan(image, scan(image), "inline").sites if one.instruction == "MFC0 Status"]
    assert (site.tactic, why in site.refused) == (Tactic.NATIVE, True), site.refused


def test_a_hypercall_is_made_from_a_fixup_and_the_guest_goes_on_behind_its_site() -> None:
    words = (addiu(A0, 0, 0x55), mtc0(A0, ENTRY_HI), addiu(A0, A0, 1), mfc0(V0, ENTRY_HI), addiu(V1, V0, 0))
    assert [tactic for tactic, _ in tactics_of(*words, mode="hypercall")] == [Tactic.HYPERCALL] * 2
    _, [guest] = same(*words, modes=["hypercall"])
    assert exits(guest, "hypercall") == 3  # and the DI at the end


@pytest.mark.parametrize(
    ("name", "word"),
    [("COP1", 0x44C0_F800), ("LL", 0xC082_0000), ("SC", 0xE082_0000), ("RDHWR UserLocal", 0x7C02_E83B)],
)
def test_no_call_stands_for_what_runs_by_itself(name: str, word: int) -> None:
    """A call would raise what CTC1 raises only while there is no coprocessor, and knows nothing of LLbit."""
    image = image_of((NOP, 0x03E0_0008, word, NOP))
    sites = [site for site in plan(image, scan(image), "hypercall").sites if site.instruction == name]
    assert [site.tactic for site in sites] == [Tactic.SAME]


def test_both_byte_orders_get_the_same_tactics() -> None:
    words = (addiu(A0, 0, 1), mfc0(V0, STATUS), EHB, mtc0(V0, STATUS), EHB)
    assert tactics_of(*words, order=">") == tactics_of(*words) == [(Tactic.INLINE, Placing.DISPLACED)] * 2


def test_loads_and_stores_where_the_fixups_lie_reach_the_guests_own_memory() -> None:
    first = abi.MIPS32.fixups
    words = (
        addiu(V0, 0, 1), mfc0(V0, STATUS), EHB, *address(A0, first), store(S0, A0), 0x8C83_0000,
        addiu(S0, 0, 0x77), mfc0(V0, STATUS), EHB, store(S0, A0), mfc0(V0, STATUS), EHB, 0x8C8B_0000,
    )  # fmt: skip
    seen, _ = same(*words)
    assert (seen[V1], seen[T3]) == (0, 0x77)


def test_a_guest_whose_own_code_lies_there_gets_no_fixup() -> None:
    data = b"".join(word.to_bytes(4, "little") for word in (NOP, NOP, mfc0(V0, STATUS), EHB)).ljust(64, b"\0")
    text = Part(".text", data, abi.MIPS32.fixups, abi.MIPS32.fixups & 0x1FFF_FFFF, 5)
    image = from_bytes(make_elf([text], abi.MIPS32.fixups, machine=8, bits=32), "guest")
    [site] = plan(image, scan(image), "inline").sites
    assert "no place for fixups" in site.refused


def test_an_interrupt_that_a_fixup_lets_in_is_taken_behind_it() -> None:
    """The timer's interrupt waits for EXL; the write of Status that clears it lets it in, and it comes once."""
    timer = (mfc0(T0, 9), addiu(T0, T0, 50), mtc0(T0, 11), EHB)
    spin = (*address(T3, 20000), addiu(T3, T3, -1), 0x1560_FFFE, NOP)
    words = (
        *address(T1, 0x8003 | r.STATUS_CU0), mtc0(T1, STATUS), EHB, *timer, *spin,
        *address(T1, 0x8001 | r.STATUS_CU0), mtc0(T1, STATUS), EHB, addiu(V0, V0, 1), *spin,
    )  # fmt: skip
    handler = (addiu(S0, S0, 1), mtc0(0, 11), mfc0(A0, EPC), mfc0(26, EPC), EHB, ERET)
    for mode in ("trap", "inline"):
        _, guest = run(mode, *words, handler=handler)
        assert (guest.vcpu.gpr[S0] >= 1, guest.vcpu.gpr[V0]) == (True, 1), mode
        window = abi.MIPS32.fixups
        assert all(not window <= pc < window + abi.MIPS32.fixup_size for _n, _v, _e, pc, _a in guest.events)
    assert DATA
