"""What user code sees of its processor, and which instructions it finds there: its guest's, whichever engine runs it.

The same guest on both engines; that of KVM is skipped, with the reason that the engine gives, where KVM cannot be had.
"""

from __future__ import annotations

import struct
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
    KERNEL_STACK,
    MEMORY,
    PROGRAM,
    STUBS,
    TASK,
    TO_USER,
    TSS,
    GuestImage,
)

CODE_32 = 0x23


class Guest(GuestImage):
    """What is left of it."""

    registers: tuple[int, ...] = ()


Run = Callable[..., tuple[Guest, int]]


def _b(value: int) -> str:
    return value.to_bytes(4, "little").hex()


@pytest.fixture(params=["unicorn", pytest.param("kvm", marks=pytest.mark.kvm)])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    made: list[Machine] = []

    def run(program: str, code: int = 0, flags: int = 0x202) -> tuple[Guest, int]:
        """Run a program to its first exception; its memory, and the vector."""
        try:
            machine = Machine(
                MEMORY, lambda _: None, engine=engines.X86_ENGINES[request.param], limits=Limits(None, 60.0)
            )
        except EngineMissing as error:
            pytest.skip(str(error))
        made.append(machine)
        guest = Guest(machine.memory.view, TO_USER, program)
        guest.tables.map(GDT, GDT | 3)
        guest.words[GDT + CODE_32 >> 3] = 0x00CF_FB00_0000_FFFF
        frame = KERNEL_STACK - 0x100 >> 3
        guest.words[frame + 2] = flags
        if code:
            guest.words[frame + 1] = code
        for vector in (3, 4, 0x80):
            guest.gate(vector, STUBS + 4 * vector, 3)
        able = machine.engine.capabilities
        translator = LoadTimeTranslator("inline", trapped=must_trap(able), inlined=without_exit(able))
        hypervisor = X86Hypervisor(machine, translator)
        hypervisor.enter(ENTRY)
        vcpu = hypervisor.vcpu
        vcpu.efer |= 0x801
        vcpu.idt_base, vcpu.idt_limit = IDT, 0xFFF
        vcpu.set_segment(r.TR, TASK, TSS, 0x167, 0x8B00)
        hypervisor.translations_changed()
        hypervisor.descriptors_changed()
        assert hypervisor.run().kind is EndKind.HALTED
        guest.registers = tuple(vcpu.gpr)
        return guest, (vcpu.rip - STUBS) // 4

    yield run
    for machine in made:
        machine.close()


def test_the_tables_that_user_code_reads_are_its_guests(run: Run) -> None:
    stores = ("0f010425", 0), ("0f010c25", 16), ("0f000425", 32), ("0f000c25", 34), ("0f012425", 36)
    guest, vector = run("".join(code + _b(DATA + at) for code, at in stores) + "f4")  # sgdt, sidt, sldt, str, smsw
    assert vector == 13
    gdt_limit, gdt, idt_limit, idt, local, task, status = struct.unpack_from("<HQ6xHQ6xHHH", guest.memory, DATA)
    assert (gdt, gdt_limit, idt, idt_limit) == (GDT, ENTRY.gdt_limit, IDT, 0xFFF)
    assert (local, task) == (0, TASK)
    assert status & (r.CR0_PE | r.CR0_TS) == r.CR0_PE


@pytest.mark.parametrize(
    ("code", "vector"),
    [("0f34", 6), ("0f35", 6), ("0f01c1", 6), ("0f01c8", 6), ("0f01c9", 6), ("0f0b", 6), ("0f33", 13), ("f4", 13)],
    ids=["SYSENTER", "SYSEXIT", "VMCALL", "MONITOR", "MWAIT", "UD2", "RDPMC", "HLT"],
)
def test_what_the_guests_processor_does_not_have_is_undefined(run: Run, code: str, vector: int) -> None:
    assert run(code)[1] == vector


@pytest.mark.parametrize(
    ("code", "flags", "vector"),
    [
        ("0f05", 0x202, 6),
        ("2e0f05", 0x202, 6),
        ("0f34", 0x202, 6),
        ("cd80", 0x202, 0x80),
        ("cc", 0x202, 3),
        ("ce", 0xA02, 4),
        ("ce0f0b", 0x202, 6),
        ("fa", 0x202, 13),
    ],
    ids=["SYSCALL", "CS SYSCALL", "SYSENTER", "INT 80H", "INT3", "INTO", "INTO without", "CLI"],
)
def test_32_bit_user_code_enters_its_kernel_as_an_intel_processor_lets_it(
    run: Run, code: str, flags: int, vector: int
) -> None:
    assert run(code, CODE_32, flags)[1] == vector


def test_a_refused_system_call_of_32_bit_code_changes_no_register(run: Run) -> None:
    guest, vector = run("b911000000 0f05", CODE_32)  # mov ecx, 11H; syscall
    assert vector == 6
    assert guest.registers[r.RCX] == 0x11
    assert guest.words[KERNEL_STACK - 40 >> 3] == PROGRAM + 5
