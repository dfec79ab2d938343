"""A kernel of T32 code runs deprivileged: as an image that tells its states, and in pages of which no image speaks."""

from __future__ import annotations

import pytest

from bt.image import Image
from bt.session import Options, Session
from emulator.machine import EndKind
from paravirt.hypervisor import Hypervisor
from tests.bt.tactics.arm.test_thumb_tactics import elf
from tests.paravirt.modes.arm_guest import FREE, USER_PAGE, USER_SECTION, MappedGuest, assemble, constant, page

WAYS = pytest.mark.parametrize("mode", ["trap", "inline"])
BASE = 0x4020_8000
VECTORS, DATA = BASE + 0x1000, BASE + 0x2000
OFF = "movw r0, #8; movt r0, #0x8400; .short 0xf7e0, 0x8000; b .; nop; nop; nop; nop; nop; nop; nop; nop"
"""PSCI, by HVC."""
NEAR = 0xBF00_0000
"""So near to the fixups that a branch reaches them."""


def number(register: int, value: int) -> str:
    return f"movw r{register}, #{value & 0xFFFF:#x}; movt r{register}, #{value >> 16:#x}; "


KERNEL = (
    "cpsid i; mrs r1, cpsr; cpsie i; mrs r2, cpsr; cpsid i; nop; "
    + number(5, VECTORS)
    + "mcr p15, 0, r5, c12, c0, 0; mrc p15, 0, r6, c12, c0, 0; "
    "mrc p15, 0, r3, c1, c0, 0; orr r3, r3, #0x40000000; mcr p15, 0, r3, c1, c0, 0; "  # exceptions are taken in T32
    "movs r7, #77; cmp r7, #77; itte eq; mrseq r8, cpsr; moveq r10, #1; movne r10, #2; "
    "movs r4, #0xd3; msr cpsr_c, r4; mov r9, r9; svc #5; mov r11, #9; "
)
SERVICE = "mrs r4, cpsr; mov r4, r4; mrs r12, spsr; subs pc, lr, #0"


def kernel() -> Image:
    """A few words of A32 that go over to T32, as Linux begins, and vectors in a page that memory has more of than the
    file."""
    begin = assemble("adr r9, go; orr r9, r9, #1; bx r9; nop; go: nop", BASE)[:-4]
    text = begin + assemble(KERNEL + OFF, BASE + len(begin), thumb=True)
    vectors = b"".join(assemble(f"b.w {VECTORS + 0x80:#x}", VECTORS + 4 * at, thumb=True) for at in range(8))
    vectors = vectors.ljust(0x80, b"\0") + assemble(SERVICE, VECTORS + 0x80, thumb=True)
    symbols = (("$a", BASE, 0), ("$t", BASE + len(begin), 0), ("$t", VECTORS, 0))
    return elf(text.ljust(0x1000, b"\0") + vectors, symbols=symbols, entry=BASE, base=BASE)


STATUS = ("DISABLE_INTERRUPTS", "ENABLE_INTERRUPTS", "READ_FLAGS", "WRITE_FLAGS")


def run(mode: str) -> tuple[list[int], dict[tuple[str, str], int]]:
    """The general registers at the end, and exits."""
    session = Session(kernel(), Options(mode=mode, memory=64 << 20), lambda _data: None)
    try:
        assert session.run().kind is EndKind.POWER_OFF
        driver = session.driver
        if isinstance(driver, Hypervisor):
            return list(driver.vcpu.gpr), dict(driver.exits.counts)  # type: ignore[attr-defined]
        return list(session.machine.engine.registers.gpr), {}
    finally:
        session.close()


@WAYS
def test_a_small_kernel_of_t32_code_is_as_at_full_privilege(mode: str) -> None:
    native, _ = run("native")
    gpr, exits = run(mode)
    assert gpr == native
    assert (gpr[1] & 0x9F, gpr[2] & 0x9F, gpr[10], gpr[11]) == (0x93, 0x13, 1, 9)
    assert (gpr[4] & 0xBF, gpr[12] & 0xBF) == (0x93, 0xB3)  # in the handler, and before it, in T32 state
    status = sum(count for (what, _), count in exits.items() if what in STATUS)
    assert status == 8 if mode == "trap" else status < 8


# -- pages of which no image speaks --------------------------------------------------------------

ROUTINES = {
    "status": ("mrs r5, cpsr; cpsid i; mrs r6, cpsr; cpsie i; mrs r7, cpsr; cpsid i", (0x93, 0x93, 0x13)),
    "moved": ("adds r6, #1; cpsie i; adds r6, #2; mrs r5, cpsr; cpsid i; adds r6, #4; mrs r7, cpsr", (0x13, 7, 0x93)),
    "block": ("cmp r6, r6; ite eq; mrseq r5, cpsr; mrsne r6, cpsr; mrs r7, cpsr", (0x93, 0, 0x93)),
    "wide": (
        "movw r5, #0x1234; b over; .short 0xf3af; over: mrs r5, cpsr; ldr.w r6, =0; mrs r7, cpsr",
        (0x93, 0, 0x93),
    ),
}


@WAYS
@pytest.mark.parametrize("routine", [*ROUTINES])
@pytest.mark.parametrize("offset", [0, 2, 0xFF0, 0xFF6])
def test_a_page_is_of_the_state_it_is_entered_in(offset: int, routine: str, mode: str) -> None:
    """From any halfword on, beyond the page's end too; then the same page is entered once more."""
    source, expected = ROUTINES[routine]
    at = NEAR + 0x8000 + offset
    code = assemble(source + "; bx lr", at, thumb=True)
    call = f"mov r6, #0; {constant(3, at | 1)}blx r3; "
    whole = b"\0" * offset + code
    guest = MappedGuest(call + call, mode, sections={NEAR: FREE | USER_SECTION},
                        frames={8: whole[:0x1000], 9: whole[0x1000:]})  # fmt: skip
    gpr = guest.run()
    assert guest.ended_by == ""
    assert tuple(gpr[number] & 0x9F for number in (5, 6, 7)) == expected


@WAYS
def test_a_page_that_is_entered_in_both_states_is_right_in_each(mode: str) -> None:
    """Through two mappings: words that are a status read in A32 at one place, T32 code at the other."""
    at = page(1)
    t32 = assemble("mrs r5, cpsr; bx lr", at + 0x100, thumb=True)
    a32 = assemble("mrs r6, cpsr; bx lr", at)
    code = f"{constant(3, at)}blx r3; {constant(3, page(2) + 0x101)}blx r3"
    guest = MappedGuest(code, mode, pages={1: (0, USER_PAGE), 2: (0, USER_PAGE)},
                        frames={0: a32.ljust(0x100, b"\0") + t32})  # fmt: skip
    gpr = guest.run()
    assert (gpr[5] & 0xBF, gpr[6] & 0xBF) == (0x93, 0x93)


@WAYS
def test_a_fault_of_the_kernels_t32_code_finds_it_in_its_state(mode: str) -> None:
    """An unprivileged load in a fixup, refused: the abort is at its site, in T32 state."""
    at = NEAR + 0x8000
    code = assemble("nop; ldrt r7, [r8]; nop; mrs r5, cpsr; strt r7, [r8]; bx lr", at, thumb=True)
    guest = MappedGuest(f"{constant(8, page(1))}{constant(3, at | 1)}blx r3", mode, pages={1: (0, 0x01E)},
                        sections={NEAR: FREE | USER_SECTION}, frames={8: code})  # fmt: skip
    gpr = guest.run()
    assert guest.ended_by == "data"
    assert gpr[14] - 8 == at + 2
    assert guest.hypervisor.vcpu.spsr & 0x20


@WAYS
def test_an_interrupt_that_waits_for_a_mask_of_t32_code(mode: str) -> None:
    """The timer's interrupt comes while it is masked; the fixups' stores exit then, and each is done whole."""
    at = NEAR + 0x8000
    loop = "cpsid i; mov r9, r9; movw r4, #20000; again: subs r4, #1; bne again; adds r5, #1; cpsid i; adds r5, #2; "
    loop += "mrs r6, cpsr; cpsid i; adds r5, #4; cpsid i; mov r9, r9; bx lr"
    guest = MappedGuest(f"mov r5, #0; {constant(3, at | 1)}blx r3", mode, sections={NEAR: FREE | USER_SECTION},
                        frames={8: assemble(loop, at, thumb=True)})  # fmt: skip
    guest.hypervisor._line_changed(True)  # a device asks, and does not stop to
    gpr = guest.run()
    assert (gpr[5], gpr[6] & 0x9F) == (7, 0x93)
