"""Segment selectors that user code loads by itself: its kernel sees them, and they survive a change of context.

The same guest on both engines; that of KVM is skipped, with the reason that the engine gives, where KVM cannot be had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from bt.loadtime import LoadTimeTranslator
from emulator.engine import engines
from emulator.errors import EngineMissing
from emulator.isa.x86 import registers as r
from emulator.machine import EndKind, Limits, Machine
from paravirt.modes import must_trap, without_exit
from paravirt.modes.x86.hypervisor import X86Hypervisor
from tests.emulator.guest_image import (
    DATA,
    ENTRY,
    GDT,
    IDT,
    KERNEL,
    KERNEL_CODE,
    KERNEL_STACK,
    MEMORY,
    PROGRAM,
    TASK,
    TSS,
    USER_CODE,
    GuestImage,
)

OTHER_DATA, BASED, READ_ONLY, CODE_32 = 0x43, 0x4B, 0x53, 0x23
"""Selectors of user segments that no kernel of today has; `BASED` begins at `DATA`."""
NOPS = "90" * 5
POINTER = DATA + 0x400
SLOTS = DATA + 0x800
"""What each of two threads has in DS, ES, FS and GS while the other runs: eight bytes each."""
ROUNDS = 40
"""More than it takes for system calls to be made without an exit."""


def _b(value: int) -> str:
    return value.to_bytes(4, "little").hex()


def _write_msr(number: int, value: int) -> str:
    return f"b9{_b(number)} b8{_b(value & 0xFFFF_FFFF)} ba{_b(value >> 32)} 0f30 {NOPS}"


READ = f"8cdb {NOPS} 8cc6 {NOPS} 8ce7 {NOPS} 8ced {NOPS}"
"""mov ebx, ds; mov esi, es; mov edi, fs; mov ebp, gs, each with room for a fixup."""
BEGIN = (
    _write_msr(0xC000_0081, KERNEL_CODE << 32 | (USER_CODE - 16) << 48)
    + _write_msr(0xC000_0082, KERNEL + 0x400)
    + _write_msr(0xC000_0084, 0x25_7FD5)
    + f"b9{_b(PROGRAM)} 41bb02000000 480f07"  # mov ecx, PROGRAM; mov r11d, 2; sysretq
)
ENTERED = (
    # swapgs; mov r8, rsp; mov rsp, ...; mov r9, rcx; mov r10, r11: what SYSRET needs again
    f"0f01f8 4989e0 48c7c4{_b(KERNEL_STACK - 0x200)} 4989c9 4d89da"
    + READ
    # cmp eax, 3; jne over; add word [GDT + BASED + 2], 0x100; over: cmp eax, 1; je end; cmp eax, 2; je switch
    + f"83f803 750a 66810425{_b(GDT + (BASED & ~7) + 2)}0001"
    + "83f801 0f84{end} 83f802 0f84{switch}"
)
BACK = "4c89c4 4c89c9 4d89d3 0f01f8 480f07"
"""mov rsp, r8; mov rcx, r9; mov r11, r10; swapgs; sysretq"""
END = "31c0 e7f4 f4"
SWITCH = (
    # mov [r15 * 8 + SLOTS], bx si di bp: save; xor r15d, 1; then load the other's
    f"664289 1cfd{_b(SLOTS)} 664289 34fd{_b(SLOTS + 2)} 664289 3cfd{_b(SLOTS + 4)} 664289 2cfd{_b(SLOTS + 6)} 4183f701"
    f"428e1cfd{_b(SLOTS)} 428e04fd{_b(SLOTS + 2)} 428e24fd{_b(SLOTS + 4)} 428e2cfd{_b(SLOTS + 6)}"
)


def kernel() -> tuple[str, str]:
    """The kernel's beginning, and where it is entered."""
    plain = len(bytes.fromhex(ENTERED.format(end="00000000", switch="00000000")))
    back, end = len(bytes.fromhex(BACK)), len(bytes.fromhex(END))
    jump_end, jump_switch = back + 9, back + end
    head = ENTERED.format(end=_b(jump_end), switch=_b(jump_switch))
    assert len(bytes.fromhex(head)) == plain
    return BEGIN, head + BACK + END + SWITCH + BACK


class Guest(GuestImage):
    """A kernel that reads the data selectors at each system call, saves them and loads others at call 2, and ends at
    call 1."""

    def __init__(self, open_engine: Callable[[], object], program: str) -> None:
        self.machine = Machine(MEMORY, lambda _: None, engine=open_engine, limits=Limits(None, 60.0))  # type: ignore[arg-type]
        begin, entered = kernel()
        super().__init__(self.machine.memory.view, begin, program)
        self.put(KERNEL + 0x400, entered)
        self.tables.map(GDT, GDT | 3)
        for selector, descriptor in (
            (OTHER_DATA, 0x00CF_F300_0000_FFFF),
            (BASED, 0x0040_F300_0000_FFFF | DATA << 16),
            (READ_ONLY, 0x00CF_F100_0000_FFFF),
            (CODE_32, 0x00CF_FB00_0000_FFFF),
        ):
            self.words[(GDT + selector) >> 3] = descriptor
        able = self.machine.engine.capabilities
        translator = LoadTimeTranslator("inline", trapped=must_trap(able), inlined=without_exit(able))
        self.hypervisor = X86Hypervisor(self.machine, translator)
        self.hypervisor.enter(ENTRY)
        vcpu = self.hypervisor.vcpu
        vcpu.efer |= 0x801
        self.hypervisor.translations_changed()
        self.hypervisor.descriptors_changed()

    def run(self) -> tuple[int, int, int, int]:
        """The selectors of DS, ES, FS and GS as the kernel read them in the end."""
        assert self.hypervisor.run().kind is EndKind.DEBUG_EXIT
        return tuple(int(self.hypervisor.vcpu.gpr[index]) & 0xFFFF for index in (3, 6, 7, 5))  # type: ignore[return-value]


@pytest.fixture(params=["unicorn", pytest.param("kvm", marks=pytest.mark.kvm)])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Guest]]:
    made: list[Guest] = []

    def build(program: str) -> Guest:
        try:
            made.append(Guest(engines.open_kvm if request.param == "kvm" else engines.open_unicorn, program))
        except EngineMissing as error:
            pytest.skip(str(error))
        return made[-1]

    yield build
    for guest in made:
        guest.machine.close()


def load(register: str, selector: int) -> str:
    """mov eax, selector; mov sreg, eax."""
    return f"b8{_b(selector)} 8e" + {"es": "c0", "ds": "d8", "fs": "e0", "gs": "e8"}[register]


CALL = "b800000000 0f05"
CALLS = f"41bc{_b(ROUNDS)} {CALL} 41ffcc 75f4"
"""mov r12d, ROUNDS; again: xor eax, eax; syscall; dec r12d; jnz again"""
LAST = "b801000000 0f05"
MOVE = "b803000000 0f05"
"""Call 3: the kernel moves the base of `BASED` by 256."""


def test_a_kernel_reads_what_user_code_loaded(make: Callable[[str], Guest]) -> None:
    loads = load("ds", OTHER_DATA) + load("es", READ_ONLY) + load("fs", BASED) + load("gs", OTHER_DATA)
    guest = make(CALLS + loads + CALLS + LAST)
    assert guest.run() == (OTHER_DATA, READ_ONLY, BASED, OTHER_DATA)
    if guest.machine.engine.capabilities.crosses:
        assert guest.hypervisor.exits.counts["SYSTEM_CALL", "inside"] > ROUNDS


def test_a_kernel_reads_what_32_bit_user_code_loaded(make: Callable[[str], Guest]) -> None:
    # jmp far [POINTER]; in 32-bit code: mov eax, OTHER_DATA; mov ds, eax; jmp far to the 64-bit code behind
    guest = make(CALLS + f"ff2c25{_b(POINTER)}")
    guest.words[POINTER >> 3] = PROGRAM + 0x200 | CODE_32 << 32
    guest.put(PROGRAM + 0x200, load("ds", OTHER_DATA) + f"ea{_b(PROGRAM + 0x300)} {USER_CODE:02x}00")
    guest.put(PROGRAM + 0x300, CALLS + LAST)
    assert guest.run()[0] == OTHER_DATA


def test_user_code_that_divides_by_zero_is_delivered_as_such_while_calls_come_by_the_same_trap(
    make: Callable[[str], Guest],
) -> None:
    # mov r11d, ...; xor ecx, ecx; stc; div ecx; the handler: pop rsi; pop rdi; pop rdx; pop rbx
    program = CALLS + f"41bb{_b(0x1234)} 31c9 f9"
    guest = make(program + "f7f1")
    guest.gate(0, KERNEL + 0x900)
    guest.put(KERNEL + 0x900, "5e 5f 5a 5b" + END)
    vcpu = guest.hypervisor.vcpu
    vcpu.idt_base, vcpu.idt_limit = IDT, 0xFFF
    vcpu.set_segment(r.TR, TASK, TSS, 0x67, 0x8B00)
    guest.hypervisor.descriptors_changed()
    guest.run()
    gpr = vcpu.gpr
    assert (gpr[r.RSI], gpr[r.RDI] & 0xFFFF) == (PROGRAM + len(bytes.fromhex(program)), USER_CODE)
    assert (gpr[r.RDX] & r.FLAG_CF, gpr[r.RBX]) == (r.FLAG_CF, KERNEL_STACK - 0x100)
    assert (gpr[r.RCX], gpr[r.R11]) == (0, 0x1234)
    if guest.machine.engine.capabilities.crosses:
        assert guest.hypervisor.exits.counts["SYSTEM_CALL", "inside"] > ROUNDS - 4


def test_what_a_kernel_writes_to_a_port_behind_a_call_without_an_exit_is_not_lost(
    make: Callable[[str], Guest],
) -> None:
    # Call 3 writes a byte to the interrupt controller's mask, instead of what it does elsewhere.
    guest = make(CALLS + MOVE + CALLS + LAST)
    at = KERNEL + 0x400 + bytes.fromhex(kernel()[1]).index(bytes.fromhex("66810425"))
    guest.put(at, "b0a5 e621 b003 90 90 90 90")  # mov al, ...; out 21h, al; mov al, 3
    guest.run()
    assert guest.machine.board.pic.state.master.imr == 0xA5


def test_a_descriptor_that_the_kernel_changed_is_what_user_code_loads_next(make: Callable[[str], Guest]) -> None:
    # SYSRET itself loads fixed descriptors; the next load by user code reads the table, though no call exited since.
    guest = make(CALLS + load("fs", BASED) + MOVE + load("fs", BASED) + "644c8b342510000000" + LAST)
    guest.words[(DATA + 0x10) >> 3], guest.words[(DATA + 0x110) >> 3] = 1, 2
    guest.run()
    assert guest.hypervisor.vcpu.gpr[14] == 2


def test_the_base_of_a_segment_that_user_code_loaded_is_its_own(make: Callable[[str], Guest]) -> None:
    # syscalls; mov fs, BASED; syscalls; mov r14, fs:[0x10]; end
    guest = make(CALLS + load("fs", BASED) + CALLS + "644c8b342510000000" + LAST)
    guest.words[(DATA + 0x10) >> 3] = 0x1234_5678_9ABC
    guest.run()
    assert guest.hypervisor.vcpu.gpr[14] == 0x1234_5678_9ABC


def test_each_thread_finds_its_own_selectors_after_the_other_ran(make: Callable[[str], Guest]) -> None:
    # The kernel changes threads at call 2: here it is the same program that goes on, with the other's selectors.
    change = "b802000000 0f05"
    first = load("ds", OTHER_DATA) + load("es", BASED) + load("gs", READ_ONLY)
    second = load("ds", READ_ONLY) + load("es", OTHER_DATA) + load("fs", BASED)
    assert make(CALLS + first + change + second + change + LAST).run() == (OTHER_DATA, BASED, 0, READ_ONLY)
    assert make(CALLS + first + change + second + change * 2 + LAST).run() == (READ_ONLY, OTHER_DATA, BASED, 0)


def test_a_selector_that_the_table_does_not_have_faults(make: Callable[[str], Guest]) -> None:
    guest = make(CALLS + load("ds", 0x5B) + LAST)
    assert guest.hypervisor.run().kind is EndKind.TRIPLE_FAULT  # it has no handlers
