"""What each fixup template must do, as models in Python: registers, flags, stack, shared page.

Room: tests. A model says what the instruction does on a processor whose interrupt flag is the virtual one; random
states and the placing of a fixup are here, too.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from bt.pagescan import PAGE
from bt.tactics.tactics import Choice
from bt.tactics.x86.choose import WindowDraft, choose
from bt.tactics.x86.pagescan import scan_page
from bt.tactics.x86.window import Ground
from emulator.isa.operation import Operation
from paravirt.abi import FIXUP_BASE
from paravirt.translator import Fixup
from tests.bt.tactics.bare_cpu import ARITHMETIC, MASK, NEAR, SITE_PAGE, STACK, STACK_SIZE, State

NOP5 = b"\x0f\x1f\x44\x00\x00"
ROUNDS = 24
SELECTORS = (0x30, 0x28)
"""What CS and SS are to a kernel whose real ones are 0x33 and 0x2B."""


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


def refusal(code: bytes, targets: int = 0, taken: int = 0, known: bool = True) -> str:
    """Why the instruction at the start of `code` gets no fixup; "" where it gets one."""
    page = code.ljust(PAGE, b"\xcc")
    scan = scan_page(page, b"", 0)
    ground = Ground(SITE_PAGE, page, b"", scan.boundaries, targets, taken, known=known)
    return choose(ground, scan.sites[0], "inline").refused
