"""Ways to a fixup, executed on a CPU at user level: jumps by padding, what comes before a site, a call at the end.

Each is compared with the same instructions run where they stand, with an instruction of the same effect in place of the
sensitive one.
"""

from __future__ import annotations

import random

import pytest

from bt.pagescan import PAGE
from bt.tactics.tactics import Placing
from bt.tactics.x86.choose import WindowDraft, choose
from bt.tactics.x86.pagescan import scan_page
from bt.tactics.x86.window import Ground
from paravirt.abi import FIXUP_BASE
from paravirt.translator import Fixup
from tests.bt.tactics.bare_cpu import ARITHMETIC, SITE_PAGE, STACK, STACK_SIZE, BareCpu, State

CR0_TO_RAX = b"\x0f\x20\xc0"
HLT = b"\xf4"


@pytest.fixture(scope="module")
def cpu() -> BareCpu:
    return BareCpu()


def state(seed: int) -> State:
    chance = random.Random(seed)
    registers = [chance.getrandbits(64) for _ in range(16)]
    registers[4] = STACK + 0x1000 + 8 * chance.randrange(0x100)
    return State(
        registers, chance.getrandbits(12) & ARITHMETIC, 0, 0, chance.randbytes(STACK_SIZE),
        words=[chance.getrandbits(64) for _ in range(5)],
    )  # fmt: skip


def patched(code: bytes, targets: tuple[int, ...] = ()) -> tuple[Fixup, bytes, WindowDraft, Placing]:
    """The fixup for the only site of `code`, and the page with the patches that lead to it."""
    page = code.ljust(PAGE, b"\xf4")
    scan = scan_page(code.ljust(PAGE, b"\x90"), b"", 0)
    ground = Ground(SITE_PAGE, page, b"", scan.boundaries, sum(1 << at for at in targets), 0, known=True)
    choice = choose(ground, scan.sites[0], "auto")
    assert isinstance(choice.draft, WindowDraft), choice.refused
    fixup, patches = choice.draft.place(FIXUP_BASE, SITE_PAGE)
    changed = bytearray(page)
    for patch in patches:
        changed[patch.offset : patch.offset + len(patch.code)] = patch.code
    return fixup, bytes(changed), choice.draft, choice.placing


def run(cpu: BareCpu, before: State, page: bytes, fixup: Fixup, until: int) -> State:
    code = {SITE_PAGE: page[:0x200], fixup.address: fixup.code}
    result = cpu.run(before, code, SITE_PAGE, SITE_PAGE + until)
    assert result.rip == SITE_PAGE + until
    assert not cpu.faults
    return result


@pytest.mark.parametrize("seed", range(8))
def test_a_jump_by_padding_comes_and_goes(cpu: BareCpu, seed: int) -> None:
    """mov rax, cr0; inc rcx (led to from elsewhere); hlt; fill."""
    code = CR0_TO_RAX + b"\x48\xff\xc1" + HLT + b"\xcc" * 9 + b"\x90"
    fixup, page, draft, placing = patched(code, targets=(3,))
    assert placing is Placing.PADDING
    assert draft.padding >= 7
    before = state(seed)
    after = run(cpu, before, page, fixup, 6)
    expected = list(before.registers)
    expected[0], expected[1] = before.words[0], (before.registers[1] + 1) % (1 << 64)
    assert after.registers == expected
    assert after.stack == before.stack


@pytest.mark.parametrize("seed", range(8))
def test_what_comes_before_a_site_is_done_before_it(cpu: BareCpu, seed: int) -> None:
    """add rbx, rcx; mov rax, cr0; add rbx, rax (led to from elsewhere)."""
    code = b"\x48\x01\xcb" + CR0_TO_RAX + b"\x48\x01\xc3" + HLT
    fixup, page, draft, _ = patched(code, targets=(6,))
    assert draft.start == 0
    before = state(seed)
    after = run(cpu, before, page, fixup, 9)
    total = (before.registers[3] + before.registers[1] + before.words[0]) % (1 << 64)
    assert (after.registers[0], after.registers[3]) == (before.words[0], total)


@pytest.mark.parametrize("seed", range(8))
def test_a_call_at_the_end_of_a_fixup_returns_behind_its_own_place(cpu: BareCpu, seed: int) -> None:
    """mov rax, cr0; call +0x20; and there: inc rdx; ret."""
    code = (CR0_TO_RAX + b"\xe8\x20\x00\x00\x00" + HLT).ljust(0x28, b"\x90") + b"\x48\xff\xc2\xc3"
    fixup, page, draft, _ = patched(code)
    assert draft.window.branch is not None
    assert draft.window.branch.call
    before = state(seed)
    after = run(cpu, before, page, fixup, 8)
    assert after.registers[0] == before.words[0]
    assert after.registers[2] == (before.registers[2] + 1) % (1 << 64)
    assert after.registers[4] == before.registers[4]
    at = before.registers[4] - 8 - STACK
    assert after.stack[at : at + 8] == (SITE_PAGE + 8).to_bytes(8, "little"), "the address that was left there"


def test_a_hypercall_in_a_fixup_stops_at_its_trap_with_everything_before_it_done(cpu: BareCpu) -> None:
    """mov ecx, 0x10; wrmsr; ret: the trap is reached with ECX loaded, and what is behind it is still to come."""
    code = b"\xb9\x10\x00\x00\x00\x0f\x30\xc3"
    fixup, page, _, _ = patched(code, targets=(7,))
    ((trap, call),) = fixup.hypercalls.items()
    before = state(1)
    after = cpu.run(before, {SITE_PAGE: page[:0x200], fixup.address: fixup.code}, SITE_PAGE, trap)
    assert after.rip == trap
    assert after.registers[1] == 0x10
    assert (call.site, call.instruction, call.resume) == (SITE_PAGE + 5, b"\x0f\x30", trap + 1)
    behind = cpu.run(before, {SITE_PAGE: page[:0x200], fixup.address: fixup.code}, call.resume, SITE_PAGE + 7)
    assert behind.rip == SITE_PAGE + 7


PUSHED = 0x1234_5678


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "behind",
    [
        b"\x53\x68" + PUSHED.to_bytes(4, "little"),  # push rbx; push imm32
        b"\x5b\x59\x90\x90",  # pop rbx; pop rcx
        b"\x53\x51\x41\x50",  # push rbx; push rcx; push r8
        b"\x0f\x94\xc3\x0f\x48\xca",  # sete bl; cmovs ecx, edx
        b"\x48\x87\xd9\x0f\xc9",  # xchg rcx, rbx; bswap ecx
        b"\x48\x11\xcb\x48\x0f\xba\xe9\x05",  # adc rbx, rcx; bts rcx, 5
    ],
)
def test_what_is_displaced_does_what_it_did_where_it_stood(cpu: BareCpu, behind: bytes, seed: int) -> None:
    """Behind a PUSHF that cannot be done twice, and beside the same code run in place."""
    code = b"\x9c" + behind + HLT
    page = code.ljust(PAGE, b"\xf4")
    scan = scan_page(page, b"", 0)
    choice = choose(Ground(SITE_PAGE, page, b"", scan.boundaries, 0, 0, known=True), scan.sites[0], "inline")
    assert isinstance(choice.draft, WindowDraft), choice.refused
    fixup, ((_, window),) = choice.draft.place(FIXUP_BASE, SITE_PAGE)
    before, until = state(seed), 1 + len(behind)
    moved = run(cpu, before, (window + page[len(window) :]), fixup, until)
    still = run(cpu, before, page, Fixup(FIXUP_BASE, HLT, SITE_PAGE), until)
    assert moved.registers == still.registers
    assert moved.flags == still.flags
    top = before.registers[4] - STACK
    assert moved.stack[: top - 8] == still.stack[: top - 8]
    assert moved.stack[top:] == still.stack[top:]


def test_a_bit_of_a_string_that_a_register_chooses_is_not_moved_behind_what_cannot_be_done_twice() -> None:
    """bt gs:[0x10], rbx reads a place of its own; nothing could try it."""
    code = (b"\x9c\x65\x48\x0f\xa3\x1c\x25\x10\x00\x00\x00").ljust(PAGE, b"\xf4")
    scan = scan_page(code, b"", 0)
    choice = choose(Ground(SITE_PAGE, code, b"", scan.boundaries, 0, 0, known=True), scan.sites[0], "inline")
    assert "does something else where it would be moved" in choice.refused
