"""Every fixup template, on a CPU at user level, against its model: registers, flags, stack, shared page.

Room: tests. A fixup must reach the model's state from random registers and flags, whether interrupts are enabled,
disabled or waiting.
"""

from __future__ import annotations

import copy
import random
import struct
from dataclasses import replace

import pytest
from iced_x86 import Code

from bt.pagescan import PAGE
from bt.tactics.tactics import Choice, Tactic
from bt.tactics.x86 import interrupt_flag
from bt.tactics.x86.choose import choose
from bt.tactics.x86.forms64 import FORMS_64
from bt.tactics.x86.pagescan import scan_page
from bt.tactics.x86.window import Ground
from emulator.isa.operation import Operation
from tests.bt.tactics.bare_cpu import ARITHMETIC, MASK, SITE_PAGE, BareCpu
from tests.bt.tactics.template_models import (
    CASES,
    NOP5,
    build,
    look_if_enabled,
    placed,
    popf_later,
    pushf,
    set_low,
    states,
    store,
    write_cr0,
)


@pytest.fixture(scope="module")
def cpu() -> BareCpu:
    return BareCpu()


@pytest.mark.parametrize("name", CASES)
def test_fixup_leaves_the_state_that_the_instructions_leave(cpu: BareCpu, name: str) -> None:
    code, model = CASES[name]
    fixup, window, behind = build(code)
    place = {SITE_PAGE: window + b"\xf4" * 8, fixup.address: fixup.code}
    for state in states(name):
        if name.startswith("popf"):
            state.privilege = 0 if name != "popf" else state.privilege
            plain = random.Random(repr(state.registers)).getrandbits(12) & (ARITHMETIC | 0x202)
            store(state, state.registers[4], plain)
        expected = copy.deepcopy(state)
        asked = [operation for operation in (step(expected) for step in model) if operation]
        result = cpu.run(state, place, SITE_PAGE, behind)
        if asked:
            call = fixup.hypercalls[result.rip]
            assert cpu.faults == [13]
            if call.operation is Operation.WRITE_FLAGS:
                assert (asked, call.resume) == ([Operation.WRITE_FLAGS], result.rip + 1)
                result.flags = expected.flags  # the hypervisor is about to write them all
            elif call.operation is Operation.WRITE_CONTROL_REGISTER:
                assert asked == [Operation.WRITE_CONTROL_REGISTER]
                assert call.resume == result.rip + 17, "behind the two instructions that would have done it"
            else:
                assert (call.operation, call.resume) == (asked[-1], behind)
        else:
            assert cpu.faults == []
            assert result.rip == behind
        assert replace(result, rip=0) == replace(expected, rip=0)


@pytest.mark.parametrize("register", [0, 13])
@pytest.mark.parametrize("word", [1, 2])
def test_cr0_is_written_by_a_store_where_it_is_one_of_two_words(cpu: BareCpu, register: int, word: int) -> None:
    name = {0: "mov cr0, rax", 13: "mov cr0, r13"}[register]
    fixup, window, behind = build(CASES[name][0])
    for state in states(f"{name} {word}")[:40]:
        state.switched[word] = -state.registers[register] & MASK
        expected = copy.deepcopy(state)
        assert write_cr0(register)(expected) is None
        result = cpu.run(state, {SITE_PAGE: window + b"\xf4" * 8, fixup.address: fixup.code}, SITE_PAGE, behind)
        assert cpu.faults == []
        assert replace(result, rip=0) == replace(expected, rip=0)


@pytest.mark.parametrize("bit", [8, 12, 13, 14, 16, 17, 18, 19, 20, 21])
def test_popf_with_more_than_arithmetic_in_it_calls_with_the_state_of_the_site(cpu: BareCpu, bit: int) -> None:
    fixup, window, behind = build(b"\x9d" + NOP5)
    for state in states(f"odd {bit}")[:24]:
        store(state, state.registers[4], 0x202 | 1 << bit)
        result = cpu.run(state, {SITE_PAGE: window, fixup.address: fixup.code}, SITE_PAGE, behind)
        call = fixup.hypercalls[result.rip]
        assert call.operation is Operation.WRITE_FLAGS
        assert call.site == SITE_PAGE
        assert call.resume == result.rip + 1, "what follows in the fixup is still to be done"
        assert result.registers == state.registers
        assert (result.delta, result.pending, result.stack) == (state.delta, state.pending, state.stack)


@pytest.mark.parametrize("name", ["pushf", "popf", "pushf; pop rax", "pushf; pop rbx; cli", "return to self by rax"])
def test_a_fault_in_a_fixup_comes_while_everything_is_as_at_the_site(cpu: BareCpu, name: str) -> None:
    """So that the hypervisor can report any fault inside a fixup as a fault of the site."""
    fixup, window, behind = build(CASES[name][0])
    for state in states(f"fault {name}")[:40]:
        state.registers[4] = 0x7000_0000_0000
        result = cpu.run(state, {SITE_PAGE: window, fixup.address: fixup.code}, SITE_PAGE, behind)
        assert cpu.faults == [14]
        assert fixup.address <= result.rip < fixup.address + len(fixup.code)
        assert replace(result, rip=0) == replace(state, rip=0)


def test_enable_before_halt_looks_for_nothing_so_that_no_interrupt_comes_between() -> None:
    directly = interrupt_flag.enable(before_halt=True)
    assert directly.finish is None
    assert not directly.calls
    fixup, _, _ = build(b"\xfb\x66\x0f\x1f\x00\xf4")
    assert fixup.hypercalls, "the padding is the one instruction of STI's shadow"


def test_every_encoding_with_a_template_is_in_the_cases() -> None:
    pushes = {int(code) for code in (Code.PUSHW_FS, Code.PUSHW_GS, Code.PUSHQ_FS, Code.PUSHQ_GS)}
    seen = set()
    for code, _ in CASES.values():
        seen |= {site.code for site in scan_page(code.ljust(PAGE, b"\xcc"), b"", 0).sites}
    assert seen >= FORMS_64.INLINE_CODES - pushes


@pytest.mark.parametrize("code", [b"\x8c\xd8", b"\x66\x8c\xe0", b"\x8c\x03", b"\x0f\xa0", b"\x8c\xe9"])
def test_reads_of_data_segment_registers_are_left_alone(code: bytes) -> None:
    """mov eax, ds; mov ax, fs; mov [rbx], es; push fs; mov ecx, gs: the real selectors are the guest's own."""
    page = code.ljust(PAGE, b"\xcc")
    scan = scan_page(page, b"", 0)
    choice = choose(Ground(SITE_PAGE, page, b"", scan.boundaries, 0, 0), scan.sites[0], "inline")
    assert (choice.tactic, choice.refused) == (Tactic.SAME, "")


def test_a_function_that_ends_in_a_return_is_one_fixup(cpu: BareCpu) -> None:
    """`popf; mov al, 1; ret; int3`, as Linux's emulation of CMPXCHG16B ends once its returns are patched."""
    code = b"\x9d\xb0\x01\xc3\xcc".ljust(PAGE, b"\xcc")
    scan = scan_page(code, b"", 0)
    ground = Ground(SITE_PAGE, code, b"", scan.boundaries, 0, 1 << 3, known=True)
    fixup, window = placed(choose(ground, scan.sites[0], "inline"))
    goal = SITE_PAGE + 0x100
    for state in states("return"):
        state.privilege = 0
        top = state.registers[4]
        store(state, top, 0xCD7 if state.flags & 1 else 2)
        store(state, top + 8, goal)
        expected = copy.deepcopy(state)
        popf_later(expected)
        set_low(0, 1)(expected)
        place = {SITE_PAGE: window, goal: b"\xf4", fixup.address: fixup.code}
        result = cpu.run(state, place, SITE_PAGE, goal)
        expected.registers[4] = top + 16
        if look_if_enabled(expected):
            call = fixup.hypercalls[result.rip]
            assert call.operation is Operation.ENABLE_INTERRUPTS
            assert fixup.code[call.resume - fixup.address :] == b"\xc3"
            expected.registers[4] = top + 8
        else:
            assert result.rip == goal
        assert replace(result, rip=0) == replace(expected, rip=0)


@pytest.mark.parametrize("name", ["pushf; cli; mov rdx, [rip+d]", "pushf; cli; mov [rip+d], rdx"])
def test_a_displaced_operand_is_tried_before_anything_changes(cpu: BareCpu, name: str) -> None:
    code = CASES[name][0]
    far = code[:-4] + struct.pack("<i", 0x4000_0000)  # where nothing is mapped
    fixup, window, behind = build(far)
    for state in states("trial")[:40]:
        result = cpu.run(state, {SITE_PAGE: window, fixup.address: fixup.code}, SITE_PAGE, behind)
        assert cpu.faults == [14]
        assert replace(result, rip=0) == replace(state, rip=0)


def test_a_fixup_with_a_flaw_is_caught_by_the_comparison(cpu: BareCpu) -> None:
    """The negative control: the proof above must be able to fail."""
    fixup, window, behind = build(CASES["pushf"][0])
    wrong = fixup.code[:1] + b"\x90" * 60 + fixup.code[61:]
    differences = 0
    for state in states("control"):
        expected = copy.deepcopy(state)
        pushf(expected)
        result = cpu.run(state, {SITE_PAGE: window, fixup.address: wrong}, SITE_PAGE, behind)
        differences += result.stack != expected.stack
    assert differences


@pytest.mark.parametrize(("counter", "taken"), [(5, True), (1, False)])
def test_a_loop_of_enables_leaves_by_both_ways_of_its_branch(cpu: BareCpu, counter: int, taken: bool) -> None:
    """`loop: nop; cli; sti; dec ecx; jnz loop`: six bytes of the loop are one fixup."""
    code = b"\x90\xfa\xfb\xff\xc9\x75\xf9".ljust(PAGE, b"\xcc")
    scan = scan_page(code, b"", 0)
    ground = Ground(SITE_PAGE, code, b"", scan.boundaries, 1, 0, known=True)
    fixup, window = placed(choose(ground, scan.sites[0], "inline"))
    goal = SITE_PAGE if taken else SITE_PAGE + 7
    for state in states("loop"):
        state.registers[1] = counter
        place = {SITE_PAGE: b"\x90" + window + b"\xf4" * 4, fixup.address: fixup.code}
        result = cpu.run(state, place, SITE_PAGE + 1, goal)
        if state.pending:
            assert fixup.hypercalls[result.rip].resume == goal
            assert fixup.hypercalls[result.rip].operation is Operation.ENABLE_INTERRUPTS
        else:
            assert result.rip == goal
        assert (result.registers[1], result.delta, result.stack) == (counter - 1, 0, state.stack)
        assert bool(result.flags & 0x40) is not taken


def test_choice_is_a_plain_value() -> None:
    page = b"\xfa".ljust(PAGE, b"\x90")
    scan = scan_page(page, b"", 0)
    ground = Ground(SITE_PAGE, page, b"", scan.boundaries, 0, 0, known=True)
    assert choose(ground, scan.sites[0], "inline") == choose(ground, scan.sites[0], "inline")
    assert isinstance(choose(ground, scan.sites[0], "inline"), Choice)
