"""Every fixup template, on a CPU at user level, against a model in Python: registers, flags, stack, shared page.

Room: tests. The model says what the instruction does on a processor whose interrupt flag is the virtual one; a fixup
must reach the same state from random registers and flags, whether interrupts are enabled, disabled or waiting.
"""

from __future__ import annotations

import copy
import random
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from iced_x86 import Code

from bt.pagescan import PAGE
from bt.tactics.tactics import Choice, Tactic
from bt.tactics.x86 import interrupt_flag
from bt.tactics.x86.choose import WindowDraft, choose
from bt.tactics.x86.forms64 import FORMS_64
from bt.tactics.x86.pagescan import scan_page
from bt.tactics.x86.window import Ground
from emulator.isa.operation import Operation
from paravirt.abi import FIXUP_BASE
from paravirt.translator import Fixup
from tests.bt.tactics.bare_cpu import ARITHMETIC, MASK, NEAR, SITE_PAGE, STACK, STACK_SIZE, BareCpu, State

NOP5 = b"\x0f\x1f\x44\x00\x00"
ROUNDS = 24
SELECTORS = (0x30, 0x28)
"""What CS and SS are to a kernel whose real ones are 0x33 and 0x2B."""


@pytest.fixture(scope="module")
def cpu() -> BareCpu:
    return BareCpu()


def build(code: bytes) -> tuple[Fixup, bytes, int]:
    """The fixup and patch for the instruction that `code` begins with at the start of a page."""
    page = code.ljust(PAGE, b"\xcc")
    scan = scan_page(page, b"", 0)
    ground = Ground(SITE_PAGE, page, b"", scan.boundaries, 0, 0, known=True)
    choice = choose(ground, scan.sites[0], "inline")
    fixup, window = placed(choice, FIXUP_BASE + 0x40)
    return fixup, window, SITE_PAGE + choice.end


def placed(choice: Choice, address: int = FIXUP_BASE) -> tuple[Fixup, bytes]:
    """The fixup of a choice, and the bytes that lead to it."""
    assert isinstance(choice.draft, WindowDraft), choice.refused
    fixup, ((offset, window),) = choice.draft.place(address, SITE_PAGE)
    assert len(fixup.code) == choice.draft.size
    assert (offset, offset + len(window)) == (choice.start, choice.end)
    return fixup, window


def states(seed: str) -> list[State]:
    """Random states in all combinations of interrupt flag and waiting interrupt."""
    chance = random.Random(seed)
    result = []
    for delta in (0, -0x200):
        for pending in (0, 1, 1 << 40):
            for _ in range(ROUNDS):
                registers = [chance.getrandbits(64) for _ in range(16)]
                registers[4] = STACK + 0x1000 + 8 * chance.randrange(0x100)
                result.append(
                    State(
                        registers,
                        chance.getrandbits(12) & ARITHMETIC,
                        delta,
                        pending,
                        chance.randbytes(STACK_SIZE),
                        words=[chance.getrandbits(64) for _ in range(5)],
                        privilege=chance.choice((0, 0, 0x1000, 0x3000)),
                        switched=[chance.getrandbits(64) for _ in range(3)],
                    )
                )
    return result


def virtual_flags(state: State) -> int:
    return (state.flags | 0x202) + state.delta + state.privilege


def store(state: State, address: int, value: int) -> None:
    at = address - STACK
    state.stack = state.stack[:at] + struct.pack("<Q", value & MASK) + state.stack[at + 8 :]


def word(state: State, address: int) -> int:
    return int(struct.unpack_from("<Q", state.stack, address - STACK)[0])


def cli(state: State) -> Operation | None:
    state.delta = -0x200
    return None


def sti(state: State) -> Operation | None:
    state.delta = 0
    return Operation.ENABLE_INTERRUPTS if state.pending else None


def pushf(state: State) -> Operation | None:
    state.registers[4] -= 8
    store(state, state.registers[4], virtual_flags(state))
    return None


def pop_to(register: int) -> Callable[[State], Operation | None]:
    def pop(state: State) -> Operation | None:
        state.registers[register] = word(state, state.registers[4])
        state.registers[4] += 8
        return None

    return pop


def popf(state: State) -> Operation | None:
    value = word(state, state.registers[4])
    if value & 0x003F7100 or state.privilege:
        return Operation.WRITE_FLAGS
    state.registers[4] += 8
    state.flags = value & ARITHMETIC
    state.delta = 0 if value & 0x200 else -0x200
    return Operation.ENABLE_INTERRUPTS if state.pending and not state.delta else None


def read_copy(register: int, number: int) -> Callable[[State], Operation | None]:
    def read(state: State) -> Operation | None:
        state.registers[register] = state.words[number]
        return None

    return read


def subtract(register: int, constant: int) -> Callable[[State], Operation | None]:
    def operate(state: State) -> Operation | None:
        before = state.registers[register]
        result = (before - constant) & MASK
        state.registers[register] = result
        state.flags = (
            (before < constant) | (bin(result & 0xFF).count("1") % 2 == 0) << 2 | ((before ^ constant ^ result) & 0x10)
        ) | (state.flags & 0x400)
        state.flags |= (result == 0) << 6 | (result >> 63) << 7
        state.flags |= ((before ^ constant) & (before ^ result)) >> 63 << 11
        return None

    return operate


def return_to_self(register: int, length: int) -> Callable[[State], Operation | None]:
    def operate(state: State) -> Operation | None:
        rsp = state.registers[4]
        store(state, rsp - 8, SELECTORS[1])
        store(state, rsp - 16, rsp)
        before, result = rsp - 8, rsp
        state.flags = (state.flags & 0x400) | (bin(result & 0xFF).count("1") % 2 == 0) << 2
        state.flags |= (before ^ 8 ^ result) & 0x10
        store(state, rsp - 24, virtual_flags(state))
        store(state, rsp - 32, SELECTORS[0])
        store(state, rsp - 40, SITE_PAGE + length)
        state.registers[register] = SELECTORS[0]
        return None

    return operate


def self_return(register: int) -> bytes:
    prefix = b"\x41" if register > 7 else b""
    low = register & 7
    push = prefix + bytes((0x50 | low,))
    head = prefix + bytes((0x8C, 0xD0 | low)) + push + bytes.fromhex("5448830424089c")
    head += prefix + bytes((0x8C, 0xC8 | low)) + push + b"\x68"
    end = SITE_PAGE + len(head) + 6
    return head + struct.pack("<I", end & 0xFFFF_FFFF) + b"\x48\xcf"


def sti_later(state: State) -> Operation | None:
    state.delta = 0
    return None


def popf_later(state: State) -> Operation | None:
    asked = popf(state)
    return asked if asked is Operation.WRITE_FLAGS else None


def look_if_enabled(state: State) -> Operation | None:
    return Operation.ENABLE_INTERRUPTS if state.pending and not state.delta else None


def constant(register: int, value: int) -> Callable[[State], Operation | None]:
    def operate(state: State) -> Operation | None:
        state.registers[register] = value
        return None

    return operate


def low_half(register: int, value: int) -> Callable[[State], Operation | None]:
    def operate(state: State) -> Operation | None:
        state.registers[register] = state.registers[register] & ~0xFFFF | value
        return None

    return operate


def set_low(register: int, value: int) -> Callable[[State], Operation | None]:
    def operate(state: State) -> Operation | None:
        state.registers[register] = state.registers[register] & ~0xFF | value
        return None

    return operate


def load_far(register: int) -> Callable[[State], Operation | None]:
    def operate(state: State) -> Operation | None:
        state.registers[register] = state.near
        return None

    return operate


def store_far_byte(register: int) -> Callable[[State], Operation | None]:
    def operate(state: State) -> Operation | None:
        state.near = state.near & ~0xFF | state.registers[register] & 0xFF
        return None

    return operate


def look(state: State) -> Operation | None:
    return Operation.ENABLE_INTERRUPTS if state.pending else None


def clts(state: State) -> Operation | None:
    state.words[0] = state.switched[0]
    return None


def write_cr0(register: int) -> Callable[[State], Operation | None]:
    def operate(state: State) -> Operation | None:
        if all((state.registers[register] + word) & MASK for word in state.switched[1:]):
            return Operation.WRITE_CONTROL_REGISTER
        state.words[0] = state.registers[register]
        return None

    return operate


STACK_REACH = NEAR - SITE_PAGE - 8
"""Displacement to NEAR in an instruction that ends at offset 8 of the site's page."""


def store_far(register: int) -> Callable[[State], Operation | None]:
    def operate(state: State) -> Operation | None:
        state.near = state.registers[register]
        return None

    return operate


def store_near(register: int, offset: int) -> Callable[[State], Operation | None]:
    def operate(state: State) -> Operation | None:
        store(state, state.registers[4] + offset, state.registers[register])
        return None

    return operate


CASES: dict[str, tuple[bytes, tuple[Callable[[State], Operation | None], ...]]] = {
    "cli": (b"\xfa" + NOP5, (cli,)),
    "sti": (b"\xfb" + NOP5, (sti,)),
    "pushf": (b"\x9c" + NOP5, (pushf,)),
    "popf": (b"\x9d" + NOP5, (popf,)),
    "pushf; pop rax": (b"\x9c\x58\x0f\x1f\x40\x00", (pushf, pop_to(0))),
    "pushf; pop rcx": (b"\x9c\x59\x0f\x1f\x40\x00", (pushf, pop_to(1))),
    "pushf; pop r12": (b"\x9c\x41\x5c\x66\x90", (pushf, pop_to(12))),
    "sti; mov [rsp-16], rbp": (b"\xfb\x48\x89\x6c\x24\xf0", (sti_later, store_near(5, -16), look)),
    "sti; sub r9, 16": (b"\xfb\x49\x83\xe9\x10", (sti_later, subtract(9, 16), look)),
    "mov eax, cs; sub rax, 1": (b"\x8c\xc8\x48\x83\xe8\x01", (constant(0, 0x30), subtract(0, 1))),
    "mov r12d, ss; nop": (b"\x41\x8c\xd4\x66\x90", (constant(12, 0x28),)),
    "mov cx, ss; nop": (b"\x66\x8c\xd1\x66\x90", (low_half(1, 0x28),)),
    "mov r12w, cs; nop": (b"\x66\x41\x8c\xcc\x66\x90", (low_half(12, 0x30),)),
    "mov rbx, cs; nop": (b"\x48\x8c\xcb\x66\x90", (constant(3, 0x30),)),
    "popf; mov al, 1; nop": (b"\x9d\xb0\x01\x66\x90", (popf_later, set_low(0, 1), look_if_enabled)),
    "pushf; cli; mov rdx, [rip+d]": (
        b"\x9c\xfa\x48\x8b\x15" + struct.pack("<i", STACK_REACH - 1),
        (pushf, cli, load_far(2)),
    ),
    "pushf; cli; mov [rip+d], rdx": (
        b"\x9c\xfa\x48\x89\x15" + struct.pack("<i", STACK_REACH - 1),
        (pushf, cli, store_far(2)),
    ),
    "pushf; pop rax; mov [rip+d], al": (
        b"\x9c\x58\x88\x05" + struct.pack("<i", STACK_REACH),
        (pushf, pop_to(0), store_far_byte(0)),
    ),
    "cli; mov [rip+d], rdx": (b"\xfa\x48\x89\x15" + struct.pack("<i", STACK_REACH), (cli, store_far(2))),
    "cli; mov [rsp-16], rbp; sub rcx, 1": (b"\xfa\x48\x89\x6c\x24\xf0\x48\x83\xe9\x01", (cli, store_near(5, -16))),
    "pushf; pop rbx; cli": (b"\x9c\x5b\xfa\x66\x90", (pushf, pop_to(3), cli)),
    "cli; sti; sub rax, 1": (b"\xfa\xfb\x48\x83\xe8\x01", (cli, subtract(0, 1), sti)),
    "sti; cli": (b"\xfb\xfa\x0f\x1f\x00", (cli,)),
    "cli; pushf; pop rdx": (b"\xfa\x9c\x5a\x66\x90", (cli, pushf, pop_to(2))),
    "mov rax, cr2": (b"\x0f\x20\xd0\x66\x90", (read_copy(0, 2),)),
    "mov r15, cr3": (b"\x41\x0f\x20\xdf\x90", (read_copy(15, 3),)),
    "mov rsi, cr0": (b"\x0f\x20\xc6\x66\x90", (read_copy(6, 0),)),
    "mov rcx, cr4": (b"\x0f\x20\xe1\x66\x90", (read_copy(1, 4),)),
    "clts; sub rcx, 1": (b"\x0f\x06\x48\x83\xe9\x01", (clts, subtract(1, 1))),
    "mov cr0, rax": (b"\x0f\x22\xc0\x66\x90", (write_cr0(0),)),
    "mov cr0, r13": (b"\x41\x0f\x22\xc5\x90", (write_cr0(13),)),
    "return to self by rax": (self_return(0), (return_to_self(0, 20),)),
    "return to self by rcx": (self_return(1), (return_to_self(1, 20),)),
    "return to self by r9": (self_return(9), (return_to_self(9, 24),)),
}


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


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (b"\x9c\xfa\x48\x8b\x03", "cannot be done twice"),  # pushf; cli; mov rax, [rbx]: may be a device
        (
            b"\x9c\x5b\x65\x48\x8b\x03",
            "at an address that what comes before makes",
        ),  # pushf; pop rbx; mov rax, gs:[rbx]
    ],
)
def test_what_must_not_be_tried_is_refused(code: bytes, why: str) -> None:
    assert why in refusal(code)


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


def refusal(code: bytes, targets: int = 0, taken: int = 0, known: bool = True) -> str:
    """Why the instruction at the start of `code` gets no fixup; "" where it gets one."""
    page = code.ljust(PAGE, b"\xcc")
    scan = scan_page(page, b"", 0)
    ground = Ground(SITE_PAGE, page, b"", scan.boundaries, targets, taken, known=known)
    return choose(ground, scan.sites[0], "inline").refused


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (b"\xfb\x90\xfa\x0f\x1f\x00", "an interrupt may have to come before"),  # sti; nop; cli
        (b"\xfb\x9c\x58\xfa\x90", "an interrupt may have to come before"),  # sti; pushf; pop; cli
        (b"\xfb\x90\x90\x48\x8b\x03", "an interrupt may have to come before"),  # sti; nop; nop; mov rax, [rbx]
        (b"\x9c\x48\x8b\x03\x90\x90", "may fault"),  # pushf; mov rax, [rbx]
        (b"\xfa\x74\x10\x90\x90", "a branch follows it before there is room"),  # cli; jz
        (b"\xfa\xc3\x55\x90\x90", "a branch follows it before there is room"),  # cli; ret; push rbp
        (b"\x9c\xc3\xcc\xcc\xcc", "a stack that has moved"),  # pushf; ret
        (b"\xfa\xff\xd0\x90\x90\x90", "something else where it would be moved"),  # cli; call rax
        (b"\xfb\xf4\x90\x90\x90", "another sensitive instruction"),  # sti; hlt
        (b"\x0f\x20\xc0\xf3\xaa\x90", "something else where it would be moved"),  # mov rax, cr0; rep stosb
        (b"\x44\x0f\x20\xc0\x90", "no copy in the shared page"),  # mov rax, cr8
        (b"\x66\x9c\x0f\x1f\x40\x00", "no fixup can do it"),  # pushfw
    ],
)
def test_what_cannot_be_moved_is_refused_with_its_reason(code: bytes, why: str) -> None:
    assert why in refusal(code)


def test_branches_tables_and_page_ends_are_refused() -> None:
    plain = b"\xfa" + NOP5
    short = "in place: it has 1 byte, and a jump takes 5"
    assert refusal(plain) == short
    assert "branch leads into" in refusal(b"\xfa\x66\x90\x66\x90", targets=1 << 3)
    assert "looks at or patches" in refusal(plain, taken=1 << 1)
    assert refusal(plain, targets=1, taken=1) == short
    assert "not all branches are known" in refusal(b"\xfa\xb8\x00\x00\x00\x00", known=False)
    assert "not all branches are known" in refusal(plain, known=False)
    page = b"\x90" * (PAGE - 3) + b"\xfa\x90\x90"
    scan = scan_page(page, b"\x90" * 15, 0)
    ground = Ground(SITE_PAGE, page, b"\x90" * 15, scan.boundaries, 0, 0, known=True)
    assert "crosses the end of its page" in choose(ground, scan.sites[0], "inline").refused


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
