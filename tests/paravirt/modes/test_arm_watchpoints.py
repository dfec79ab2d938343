"""ARMv7's watchpoints in a deprivileged guest: trapped and with fixups, in both states, by kernel and user code."""

from __future__ import annotations

import pytest

from emulator.isa.arm.access import extent_a32, extent_t32
from tests.paravirt.modes.arm_guest import FREE, KERNEL_PAGE, USER_PAGE, MappedGuest, assemble, constant, page, to_user

WAYS = pytest.mark.parametrize("mode", ["trap", "inline"])
AT = page(1) + 0x104
"""The word that is watched."""
DEBUG_EVENT, WRITE, WATCHPOINT = 2, 1 << 11, 10
ON, LOADS, STORES, KERNEL, USER, WORD = 1, 1 << 3, 2 << 3, 1 << 1, 2 << 1, 0xF << 5
ALL = ON | LOADS | STORES | KERNEL | USER | WORD


def watch(control: int = ALL, address: int = AT, status: int = 1 << 15, number: int = 0) -> str:
    """DBGWVR, DBGWCR and DBGDSCR.MDBGen."""
    code = constant(9, address) + f"mcr p14, 0, r9, c0, c{number}, 6; " + constant(9, control)
    return code + f"mcr p14, 0, r9, c0, c{number}, 7; " + constant(9, status) + "mcr p14, 0, r9, c0, c2, 2; "


def run(code: str, mode: str = "trap", user: str = "", *, thumb: bool = False, **more: object) -> MappedGuest:
    """A guest whose page 1 is plain data, and which runs `code`, or after it `user` in User mode."""
    frames = {0: bytes(range(256)) * 16, 2: assemble(user, page(2), thumb=thumb) if user else b""}
    pages = {1: (0, USER_PAGE), 2: (2, USER_PAGE)}
    whole = code + (to_user(page(2), thumb=thumb) if user else "")
    guest = MappedGuest(whole, mode, pages=pages, frames=frames, **more)  # type: ignore[arg-type]
    guest.run()
    return guest


def caught(guest: MappedGuest) -> tuple[int, int, int]:
    """DFSR, DFAR and the method of entry."""
    system = guest.system
    return system["DFSR"], system["DFAR"], system["DBGDSCRext"] >> 2 & 0xF


@WAYS
@pytest.mark.parametrize("number", [0, 3])
def test_a_load_of_the_kernel_is_a_data_abort_before_it_is_done(mode: str, number: int) -> None:
    guest = run(watch(number=number) + constant(8, AT) + "mov r7, #0; there: ldr r7, [r8]; mov r6, #1", mode)
    assert guest.ended_by == "data"
    assert caught(guest) == (DEBUG_EVENT, AT, WATCHPOINT)
    gpr = guest.hypervisor.vcpu.gpr
    assert (gpr[7], gpr[6]) == (0, 0)
    at = gpr[14] - 8
    assert guest.word(at) == int.from_bytes(assemble("ldr r7, [r8]", 0), "little")


@WAYS
def test_a_store_of_user_code_is_a_data_abort_and_stores_nothing(mode: str) -> None:
    user = constant(8, AT) + "mov r7, #0; ldrb r6, [r8, #4]; str r7, [r8]"
    guest = run(watch(), mode, user)
    assert guest.ended_by == "data"
    assert caught(guest) == (DEBUG_EVENT | WRITE, AT, WATCHPOINT)
    assert guest.hypervisor.vcpu.gpr[6] == 8
    assert guest.word(FREE + 0x104) == 0x07060504


@pytest.mark.parametrize(
    ("control", "access", "fires"),
    [
        (ALL & ~ON, "ldr r7, [r8]", False),
        (ALL & ~LOADS, "ldr r7, [r8]", False),
        (ALL & ~LOADS, "str r7, [r8]", True),
        (ALL & ~STORES, "str r7, [r8]", False),
        (ALL & ~KERNEL, "ldr r7, [r8]", False),
        (ALL & ~KERNEL, "ldrt r7, [r8]", True),
        (ALL & ~USER, "ldrt r7, [r8]", False),
        (ALL & ~USER, "strt r7, [r8]", False),
        (ALL & ~WORD | 1 << 7, "ldrb r7, [r8, #2]", True),
        (ALL & ~WORD | 1 << 7, "ldrb r7, [r8, #3]", False),
        (ALL & ~WORD | 1 << 7, "ldrh r7, [r8, #2]", True),
        (ALL & ~WORD | 1 << 7, "ldrh r7, [r8]", False),
        (ALL, "ldr r7, [r8, #4]", False),
        (ALL, "ldr r7, [r8, #-3]", True),
        (ALL, "ldrd r6, r7, [r8, #-4]", True),
        (ALL, "ldrd r6, r7, [r8, #4]", False),
        (ALL, "sub r8, r8, #12; ldmia r8, {r4-r7}", True),
        (ALL, "sub r8, r8, #16; ldmia r8, {r4-r7}", False),
        (ALL, "add r8, r8, #12; ldmdb r8, {r5-r7}", True),
        (ALL, "swp r7, r7, [r8]", True),
        (ALL, "ldrex r7, [r8]", True),
        (ALL | 7 << 24, "ldrb r7, [r8, #0x50]", True),
        (ALL | 7 << 24, "ldrb r7, [r8, #0x7c]", False),
        (ALL | 1 << 20, "ldr r7, [r8]", False),
    ],
)
def test_it_fires_for_the_bytes_the_accesses_and_the_levels_that_it_names(
    control: int, access: str, fires: bool
) -> None:
    guest = run(watch(control) + constant(8, AT) + access)
    assert guest.ended_by == ("data" if fires else "")
    if fires:
        assert caught(guest)[0] & 0xF == DEBUG_EVENT


def test_without_monitor_mode_and_when_taken_back_it_does_not_fire() -> None:
    for before in (watch(status=0), watch() + "mov r9, #0; mcr p14, 0, r9, c0, c0, 7; "):
        guest = run(before + constant(8, AT) + "ldr r7, [r8]")
        assert guest.ended_by == ""
        assert guest.hypervisor.vcpu.gpr[7] == 0x07060504


@WAYS
def test_accesses_beside_it_are_done_in_both_views_and_counted(mode: str) -> None:
    user = constant(8, AT) + "ldr r7, [r8, #4]; str r7, [r8, #8]; ldr r6, [r8, #8]; svc #0"
    guest = run(watch() + constant(8, AT) + "ldr r5, [r8, #-4]; ", mode, user)
    assert guest.ended_by == "call"
    gpr = guest.hypervisor.vcpu.gpr
    assert (gpr[5], gpr[6], gpr[7]) == (0x03020100, 0x0B0A0908, 0x0B0A0908)
    exits = guest.hypervisor.exits.counts
    assert sum(count for (what, _), count in exits.items() if what == "access to a watched page") == 4


def test_a_watchpoint_in_a_section_of_the_kernels() -> None:
    """Where all pages are mapped together."""
    section = 0x2000_0000
    code = watch(address=section + 0x104) + constant(8, section) + "ldr r7, [r8, #0xf00]; ldr r7, [r8, #0x100]; "
    guest = run(f"{code}mov r5, #5; ldr r7, [r8, #0x104]; mov r5, #6", sections={section: FREE | 0x40E})
    assert guest.ended_by == "data"
    assert caught(guest)[:2] == (DEBUG_EVENT, section + 0x104)
    assert guest.hypervisor.vcpu.gpr[5] == 5


@WAYS
def test_a_watchpoint_in_the_page_that_the_kernel_executes(mode: str) -> None:
    """Its literals, read by the page's own code, which has a site in it."""
    source = "mrs r5, cpsr; ldr r6, near; ldr r7, there; mov r6, #0; bx lr; near: .word 0x11223344; there: .word 5"
    encoded = assemble(source, page(3))
    at = page(3) + encoded.index((0x11223344).to_bytes(4, "little")) + 4
    guest = MappedGuest(watch(address=at) + constant(3, page(3)) + "blx r3", mode, pages={3: (0, KERNEL_PAGE)},
                        frames={0: encoded})  # fmt: skip
    gpr = guest.run()
    assert (guest.ended_by, gpr[6], guest.system["DFAR"]) == ("data", 0x11223344, at)


def test_user_code_of_thumb_and_several_registers() -> None:
    user = f"movw r1, #{AT - 8 & 0xFFFF:#x}; movt r1, #{AT >> 16:#x}; ldmia r1!, {{r2, r3}}; ldmia r1!, {{r4}}; svc #0"
    guest = run(watch(), "trap", user, thumb=True)
    assert guest.ended_by == "data"
    assert (guest.hypervisor.vcpu.gpr[3], guest.hypervisor.vcpu.gpr[1]) == (0x03020100, AT)


def test_a_mismatch_steps_over_it_as_linux_does() -> None:
    """The data abort takes the watchpoint away and has the next instruction but this one stop; that puts it back."""
    taken = "add r11, r11, #1; sub r4, lr, #8; mov r9, #0; mcr p14, 0, r9, c0, c0, 7; mcr p14, 0, r4, c0, c0, 4; "
    taken += constant(9, 4 << 20 | 0xF << 5 | 2 << 1 | 1) + "mcr p14, 0, r9, c0, c0, 5; subs pc, lr, #8"
    back = "add r10, r10, #1; mov r9, #0; mcr p14, 0, r9, c0, c0, 5; " + constant(9, ALL)
    back += "mcr p14, 0, r9, c0, c0, 7; subs pc, lr, #4"
    user = constant(8, AT) + "ldr r5, [r8]; add r5, r5, #1; str r5, [r8]; ldr r6, [r8]; svc #0"
    guest = run("mov r10, #0; mov r11, #0; " + watch(), "inline", user, handlers={"data": taken, "fetch": back})
    gpr = guest.hypervisor.vcpu.gpr
    assert (guest.ended_by, gpr[5], gpr[6]) == ("call", 0x07060505, 0x07060505)
    assert (gpr[10], gpr[11]) == (3, 3)


@pytest.mark.parametrize(
    ("source", "size", "begin"),
    [
        ("ldr r0, [r1, #4]!", 4, 0),
        ("strb r0, [r1]", 1, 0),
        ("ldrsh r0, [r1]", 2, 0),
        ("ldrsb r0, [r1]", 1, 0),
        ("strd r2, r3, [r1]", 8, 0),
        ("ldrexd r2, r3, [r1]", 8, 0),
        ("ldrexb r2, [r1]", 1, 0),
        ("stmib r1, {r2, r3}", 8, 4),
        ("stmda r1, {r2, r3}", 8, -4),
        ("stmdb r1!, {r2, r3}", 8, -8),
        ("ldmia r1, {r2, r3, r4}", 12, 0),
        ("vldr d0, [r1]", 8, 0),
        ("vstr s0, [r1]", 4, 0),
        ("vldmia r1, {d0-d3}", 32, 0),
        ("vstmdb r1!, {d0, d1}", 16, -16),
        ("vld1.8 {d0, d1}, [r1]", 16, 0),
        ("vst4.16 {d0, d1, d2, d3}, [r1]", 32, 0),
        ("vld1.16 {d0[1]}, [r1]", 2, 0),
    ],
)
def test_how_far_an_access_goes(source: str, size: int, begin: int) -> None:
    registers = [0x1000 * number for number in range(16)]
    word = int.from_bytes(assemble(source, 0), "little")
    extent = extent_a32(word)
    assert (extent.size, extent.begins(registers, 0x1000)) == (size, 0x1000 + begin)
    thumb = {"stmib": "", "stmda": ""}.get(source.split()[0], source)
    if thumb:
        code = assemble(thumb, 0, thumb=True)
        first, second = int.from_bytes(code[:2], "little"), int.from_bytes(code[2:4], "little")
        extent = extent_t32(first, second)
        assert (extent.size, extent.begins(registers, 0x1000)) == (size, 0x1000 + begin)
