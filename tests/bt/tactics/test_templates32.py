"""Every fixup for 32-bit code against the instructions themselves: the same engine runs these at level 0.

Room: tests. From random registers, flags and stacks the fixup, at level 3 with the virtual interrupt flag in the shared
page, must reach the state that the instructions reach at level 0 with the real one, or ask the hypervisor for the rest.
"""

from __future__ import annotations

import mmap
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from iced_x86 import Decoder

from bt.pagescan import PAGE
from bt.tactics.tactics import Refused, Tactic
from bt.tactics.x86 import assemble32 as asm
from bt.tactics.x86 import templates32
from bt.tactics.x86.choose import WindowDraft, choose
from bt.tactics.x86.forms32 import FORMS_32
from bt.tactics.x86.pagescan import own_targets, scan_page
from bt.tactics.x86.window import Ground, compose
from emulator.engine.engines import open_unicorn
from emulator.engine.exit import Exit, ExitKind
from emulator.isa.operation import Operation
from emulator.isa.x86 import registers as r
from paravirt.abi import I386
from paravirt.translator import Fixup

SITE_PAGE, STACK, DATA = 0x10_0000, 0x20_0000, 0x30_0000
WINDOW = 0x40_0000
"""Physical address of the hypervisor's window."""
SIZE = 0x60_0000
ARITHMETIC = r.FLAGS_STATUS | r.FLAG_DF
ROUNDS = 12
CODE, STACK_SELECTOR = 0x10, 0x18
FIXUP = I386.base + 0x40

CASES = {
    "cli": "fa 0f1f4000",
    "sti": "fb 0f1f4000",
    "pushf": "9c 0f1f4000",
    "popf": "9d 0f1f4000",
    "pushf; pop eax": "9c 58 0f1f00",
    "pushf; pop ecx; cli; nop": "9c 59 fa 6690",
    "pushf; pop esi; cli; lea esi, [esi]": "9c 5e fa 8d7600",
    "pushf; pop [ebp-8]": "9c 8f45f8 90",
    "pushf; pop [ebp-8]; mov eax, [ebp-8]; cli": "9c 8f45f8 8b45f8 fa",
    "pushf; pop eax; mov [ebp-0x44], eax; cli": "9c 58 8945bc fa",
    "cli; mov edx, esi; mov ebx, eax": "fa 89f2 89c3",
    "cli; mov eax, [ebp+12]; nop": "fa 8b450c 90",
    "sti; dec dword fs:[0x40]": "fb 64ff0d40000000",
    "test bh, 2; je over; sti": "f6c702 7401 fb",
    "test edx, 0x200; jne over; sti": "f7c200020000 7501 fb",
    "mov eax, cs; sub eax, 1": "8cc8 83e801",
    "mov dx, ss; sub eax, 1": "668cd2 83e801",
    "push cs; mov eax, ebx; mov ecx, ebx": "0e 89d8 89d9",
    "push ss; push esp; add dword [esp], 28": "16 54 83 04 24 1c",
    "popf; pop esi; pop edi; pop ebx; pop ebp": "9d 5e 5f 5b 5d",
    "sti; add esp, 4; pop ebx": "fb 83c404 5b",
    "cli; pushf; pop edx; nop": "fa 9c 5a 6690",
    "sti; cli; nop": "fb fa 0f1f00",
    "push eax; cli; push ecx; pop edx; nop": "fa 50 51 5a 90",
}
"""Instructions of at least five bytes; the site is the first sensitive one."""


@dataclass
class State:
    """What a guest can see, with the flags complete."""

    registers: list[int]
    flags: int
    stack: bytes
    data: bytes


class Cpu:
    """One engine, on which code runs at level 0 and at level 3."""

    def __init__(self) -> None:
        self.engine = open_unicorn()
        self.memory = memoryview(mmap.mmap(-1, SIZE))
        self.engine.map_memory(0, self.memory)
        words = self.memory.cast("Q")
        open_to_all = r.PAGE_P | r.PAGE_RW | r.PAGE_US
        words[0x1000 >> 3] = 0x2000 | open_to_all
        words[0x2000 >> 3] = 0x3000 | open_to_all
        words[(0x2000 >> 3) + 3] = 0x4000 | open_to_all
        for number in range(2):
            words[(0x3000 >> 3) + number] = number << 21 | open_to_all | r.PAGE_PS
        words[(0x4000 >> 3) + (I386.base >> 21 & 511)] = WINDOW | open_to_all | r.PAGE_PS
        struct.pack_into("<QQQQ", self.memory, 0x5000, 0, 0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)

    def run(self, state: State, level: int, code: dict[int, bytes]) -> tuple[State, int]:
        """Run from the site to the first event; the state then, and EIP."""
        engine, seen = self.engine, self.engine.registers
        self.memory[STACK : STACK + PAGE] = state.stack
        self.memory[DATA : DATA + PAGE] = state.data
        for address, data in code.items():
            at = address - I386.base + WINDOW if address >= I386.base else address
            self.memory[at : at + len(data)] = data
        engine.set_root(0x1000)
        engine.set_control(0x8001_0033, 0x620, 0xD01)
        privilege = level << 13
        seen.set_segment(r.CS, CODE | level, 0, 0xFFFF_FFFF, 0xC0_9B00 | privilege)
        for index in (r.ES, r.SS, r.DS):
            seen.set_segment(index, STACK_SELECTOR | level, 0, 0xFFFF_FFFF, 0xC0_9300 | privilege)
        seen.set_segment(r.FS, STACK_SELECTOR | level, DATA, 0xFFFF_FFFF, 0xC0_9300 | privilege)
        seen.set_table(0, 0x5000, 0x1F)
        for number in range(16):
            seen.gpr[number] = state.registers[number] if number < 8 else 0
        seen.rflags = state.flags
        seen.privilege = level
        seen.rip = SITE_PAGE
        engine.flush_code()
        where: list[int] = []

        def handler(exit_: Exit) -> None:
            halted = exit_.kind is ExitKind.HALT
            assert halted or (exit_.kind, exit_.vector) == (ExitKind.FAULT, 13), (exit_.kind, exit_.vector)
            where.append(seen.rip - halted)
            engine.stop()

        engine.run(handler)
        after = State(
            [seen.gpr[number] for number in range(8)],
            seen.rflags,
            bytes(self.memory[STACK : STACK + PAGE]),
            bytes(self.memory[DATA : DATA + PAGE]),
        )
        return after, where[0]

    def shared(self, offset: int) -> int:
        """A word of the shared page."""
        return int(struct.unpack_from("<I", self.memory, WINDOW + I386.fixup_size + offset)[0])

    def share(self, offset: int, value: int) -> None:
        """Write a word of the shared page."""
        struct.pack_into("<I", self.memory, WINDOW + I386.fixup_size + offset, value & 0xFFFF_FFFF)


@pytest.fixture(scope="module")
def cpu() -> Iterator[Cpu]:
    made = Cpu()
    yield made
    made.engine.close()


def build(code: bytes) -> tuple[Fixup, bytes, int]:
    """The fixup and the patched page for the first sensitive instruction of `code`, and where both end."""
    page = (code + b"\xf4").ljust(PAGE, b"\xcc")
    scan = scan_page(page, b"", 0, 0, 32)
    ground = Ground(SITE_PAGE, page, b"", scan.boundaries, own_targets(page, scan), 0, known=True, forms=FORMS_32)
    choice = choose(ground, scan.sites[0], "inline")
    assert choice.tactic is Tactic.INLINE, choice.refused
    assert isinstance(choice.draft, WindowDraft)
    fixup, patches = choice.draft.place(FIXUP, SITE_PAGE)
    patched = bytearray(page)
    for patch in patches:
        patched[patch.offset : patch.offset + len(patch.code)] = patch.code
    return fixup, bytes(patched), SITE_PAGE + choice.end


def states(seed: str) -> Iterator[tuple[State, bool]]:
    """Random states in all combinations of interrupt flag, IOPL and waiting interrupt."""
    chance = random.Random(seed)
    for enabled in (0, r.FLAG_IF):
        for waiting in (False, True):
            for _ in range(ROUNDS):
                registers = [chance.getrandbits(32) for _ in range(8)]
                registers[r.RSP] = STACK + 0x400 + 4 * chance.randrange(0x100)
                registers[r.RBP] = STACK + 0xA00 + 4 * chance.randrange(0x100)
                privilege = chance.choice((0, 0, 0x1000, 0x3000))
                stack = bytearray(chance.randbytes(PAGE))
                plain = chance.getrandbits(12) & (ARITHMETIC | r.FLAG_IF) | 2
                struct.pack_into("<I", stack, registers[r.RSP] - STACK, plain)
                flags = chance.getrandbits(12) & ARITHMETIC | enabled | privilege | 2
                yield State(registers, flags, bytes(stack), chance.randbytes(PAGE)), waiting


def deprivileged(cpu: Cpu, state: State, waiting: bool) -> State:
    """The same state as the real processor has it at level 3."""
    cpu.share(I386.interrupt_state, 0 if state.flags & r.FLAG_IF else I386.disabled)
    cpu.share(I386.pending, int(waiting))
    cpu.share(0x50, state.flags & r.FLAG_IOPL)
    for number in range(5):
        cpu.share(I386.registers + 4 * number, 0x1000_0000 + number)
    return State(state.registers, state.flags & ARITHMETIC | r.FLAG_IF | 2, state.stack, state.data)


def privileged(cpu: Cpu, state: State, iopl: int) -> State:
    """What the guest sees of a state of the real processor."""
    enabled = r.FLAG_IF if cpu.shared(I386.interrupt_state) == 0 else 0
    flags = state.flags & ~(r.FLAG_IF | r.FLAG_IOPL) | enabled | iopl
    return State(state.registers, flags, state.stack, state.data)


@pytest.mark.parametrize("name", CASES)
def test_a_fixup_leaves_the_state_that_the_instructions_leave_at_level_0(cpu: Cpu, name: str) -> None:
    code = bytes.fromhex(CASES[name])
    fixup, page, behind = build(code)
    original = {SITE_PAGE: (code + b"\xf4").ljust(PAGE, b"\xcc")}
    asked = 0
    for state, waiting in states(name):
        expected, end = cpu.run(state, 0, original)
        iopl = state.flags & r.FLAG_IOPL
        if code[0] == 0x9D and iopl:
            continue  # the hypervisor does a POPF that may change IOPL
        assert end == SITE_PAGE + len(code)
        after, place = cpu.run(deprivileged(cpu, state, waiting), 3, {SITE_PAGE: page, FIXUP: fixup.code})
        call = fixup.hypercalls.get(place)
        found = privileged(cpu, after, iopl)
        if call is not None:
            asked += 1
            assert waiting
            assert (call.operation, call.resume) == (Operation.ENABLE_INTERRUPTS, behind)
            if call.instruction:
                assert call.instruction == b"\xfb"
                found.flags |= r.FLAG_IF
            # What is behind the window, and was run by the original, has still to come.
            expected, _ = cpu.run(state, 0, {SITE_PAGE: code[: behind - SITE_PAGE] + b"\xf4"})
        else:
            assert place == SITE_PAGE + len(code)
            assert not (waiting and found.flags & r.FLAG_IF and not state.flags & r.FLAG_IF)
        assert found == expected, name
    enables = any(byte in code for byte in (b"\xfb", b"\x9d")) and name != "sti; cli; nop"
    assert (asked > 0) == enables


def test_a_popf_with_more_than_arithmetic_in_it_is_the_hypervisors(cpu: Cpu) -> None:
    fixup, page, _ = build(bytes.fromhex("9d 0f1f4000"))
    for state, _ in states("odd"):
        stack = bytearray(state.stack)
        struct.pack_into("<I", stack, state.registers[r.RSP] - STACK, 0x4_0246)
        odd = State(state.registers, state.flags, bytes(stack), state.data)
        after, place = cpu.run(deprivileged(cpu, odd, False), 3, {SITE_PAGE: page, FIXUP: fixup.code})
        assert fixup.hypercalls[place].operation is Operation.WRITE_FLAGS
        assert (after.registers, after.stack) == (odd.registers, odd.stack)


@pytest.mark.parametrize(("opcode", "number", "register"), [("0f20c0", 0, 0), ("0f20d3", 2, 3), ("0f20e6", 4, 6)])
def test_reads_of_control_registers_show_the_copies(cpu: Cpu, opcode: str, number: int, register: int) -> None:
    fixup, page, behind = build(bytes.fromhex(opcode + "6690"))
    for state, _ in states(opcode):
        after, place = cpu.run(deprivileged(cpu, state, False), 3, {SITE_PAGE: page, FIXUP: fixup.code})
        assert place == behind
        assert after.registers[register] == 0x1000_0000 + number
        assert after.stack == state.stack


def test_linuxs_serialisation_leaves_only_what_it_leaves(cpu: Cpu) -> None:
    code = b"\x9c\x0e\x68" + struct.pack("<I", SITE_PAGE + 8) + b"\xcf"
    fixup, page, behind = build(code)
    assert behind == SITE_PAGE + 8
    for state, waiting in states("serialise"):
        expected, end = cpu.run(state, 0, {SITE_PAGE: (code + b"\xf4").ljust(PAGE, b"\xcc")})
        after, place = cpu.run(deprivileged(cpu, state, waiting), 3, {SITE_PAGE: page, FIXUP: fixup.code})
        assert (end, place) == (behind, behind)
        assert privileged(cpu, after, state.flags & r.FLAG_IOPL) == expected


def test_a_selector_that_is_the_guests_own_needs_nothing() -> None:
    for code in ("8cd8", "1e", "06", "0fa0", "0fa8", "8ce8"):
        page = bytes.fromhex(code).ljust(PAGE, b"\xcc")
        scan = scan_page(page, b"", 0, 0, 32)
        ground = Ground(SITE_PAGE, page, b"", scan.boundaries, 0, 0, known=True, forms=FORMS_32)
        assert choose(ground, scan.sites[0], "inline").tactic is Tactic.SAME


def test_flags_read_before_they_change_are_not_read_again_after_a_fault() -> None:
    code = bytes.fromhex("9c 58 fa 8903 90")  # pushf; pop eax; cli; mov [ebx], eax
    page = code.ljust(PAGE, b"\xcc")
    scan = scan_page(page, b"", 0, 0, 32)
    ground = Ground(SITE_PAGE, page, b"", scan.boundaries, 0, 0, known=True, forms=FORMS_32)
    with pytest.raises(Refused, match="cannot be done twice"):
        compose(ground, 0)


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (asm.load(3, I386.shared_page), "mov ebx,ss:[0FF3E0000h]"),
        (asm.store(I386.shared_page, 5), "mov ss:[0FF3E0000h],ebp"),
        (asm.store_constant(I386.shared_page, -0x200), "mov dword ptr ss:[0FF3E0000h],0FFFFFE00h"),
        (asm.compare_constant(I386.shared_page, 0), "cmp dword ptr ss:[0FF3E0000h],0"),
        (asm.load_stack(2, -8), "mov edx,[esp-8]"),
        (asm.store_stack(12, 6), "mov [esp+0Ch],esi"),
        (asm.store_stack_constant(-12, 0xC100_0000), "mov dword ptr [esp-0Ch],0C1000000h"),
        (asm.add(7, 1), "lea edi,[edi+ecx]"),
        (asm.stack_address(4, -16), "lea esp,[esp-10h]"),
        (asm.subtract_constant(1, 0x200), "sub ecx,200h"),
        (asm.and_constant(1, 0x200), "and ecx,200h"),
        (asm.test_constant(1, 0xFFFF_0000), "test ecx,0FFFF0000h"),
        (asm.pop(5), "pop ebp"),
        (asm.read_selector(2, 1), "mov edx,cs"),
        (asm.decrease(4, 3, 4), "lea esp,[esp-3]"),
        (asm.decrease(1, 3, 2), "lea cx,[ecx-3]"),
        (asm.exchange_stack(-4, 1), "xchg ecx,[esp-4]"),
        (asm.push_constant(0xC123_4567), "push 0C1234567h"),
    ],
)
def test_an_instruction_is_encoded_as_its_name_says(made: bytes, text: str) -> None:
    (instruction,) = Decoder(32, made)
    assert str(instruction) == text


def test_esp_is_no_index_and_cannot_hold_flags() -> None:
    with pytest.raises(ValueError, match="ESP"):
        asm.add(1, 4)
    with pytest.raises(ValueError, match="ESP"):
        templates32.read_flags_to(4)
    with pytest.raises(ValueError, match="CR8"):
        templates32.read_control_register(0, 8)
