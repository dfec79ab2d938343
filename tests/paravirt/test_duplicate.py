"""A deprivileged guest is a duplicate: the same code at full privilege has the same events, registers and memory."""

from __future__ import annotations

import pytest

from bt.loadtime import LoadTimeTranslator
from tests.emulator.guest_image import DATA, GDT, HALT, KERNEL_CODE, TO_USER
from tests.emulator.native_guest import NativeGuest
from tests.paravirt.tiny_guest import TinyGuest

TICK = 0x4_0800
STORE = "4889042500000700"
"""mov [DATA], rax"""

KERNEL_CASES = {
    "flags": "fb 9c 58 fa 9c 5b 6802320000 9d 9c 59 6a02 9d 9c 5a",
    "16-bit flags": "669c 6658 66680202 669d 9c 5b",
    "control registers": "0f20c0 0f20e3 0f20d9 0f20d2 440f20c6 b834120000 0f22d0 0f20d5",
    "status word": "0f01e0 6689c3 0f01f0 0f06 0f20c1",
    "descriptor tables": "0f010425 00000700 0f010c25 10000700 0f00c0 0f00cb",
    "segments": "66b81800 8ed8 8ec0 8ee0 8cdb 8cc9 8cd2 0fa0 5e 66b80000 8ee8 8ced",
    "a bad segment": "66b84000 8ed8",
    "inspection": "b810000000 0f02d8 0f03c8 0f00e0 9c 5a 0f00e8 9c 5e",
    "msrs": "b9010100c0 b800100000 ba00000000 0f30 31c0 0f32 b9000100c0 0f32 b977020000 0f32",
    "debug registers": "b801000000 0f23c0 0f21c3 0f21f1 0f21fa",
    "ports": "b0a5 e680 e480 66e580 e580 89c3",
    "undefined": "0f0b",
    "int 1": "90 f1",
    "int 3": "90 cc",
    "divide": "31c9 f7f1",
    "cpuid": "b801000000 31c9 0fa2",
    "invalidation": "0f01382500 0f09 0f08",
    "far return": "6a10 68400f0400 48cb",
    "iret to itself": "488d05 0e000000 6a18 6800100800 6a02 6a10 50 48cf 909090",
    "page fault": "48a10000c00000000000",
    "write to a page that is read-only": "48a30000070000000000 48a300000e0000000000",
    "stack fault by address": "48bc0000000000008000 50",
    "swap": "0f01f8 0f01f8",
    "undefined by cpuid": "0f01d0",
    "monitor": "0f01c8",
    "rdpmc": "0f33",
    "task register": "b838000000 0f00d8",
    "its own code changed": "b805000000 fe0500000000 90 c6050100000041 90 93",
    "its own code read and changed": "8a0500000000 fe0500000000 90 000500000000 90 90",
    "halted": "90",
}

USER_CASES = {
    "nothing": "cd80",
    "flags": "9c 58 6802320000 9d 9c 5b cd80",
    "cli": "fa",
    "hlt": "f4",
    "tables": "0f010425 00000700 0f010c25 10000700 0f00c0 0f00cb 0f01e1 cd80",
    "selectors": "8cc8 8cdb 8cd1 8cc2 66b82b00 8ed8 66b81800 8ed8",
    "inspection": "b833000000 0f02d8 0f03c8 0f00e0 9c 5a b810000000 0f02f0 9c 5f cd80",
    "ports": "e480",
    "control": "0f20c0",
    "msr": "0f32",
    "int 3": "cc",
    "int of the kernel's": "cd81",
    "int 1": "f1",
    "page fault": "48a10000c00000000000",
    "undefined": "0f0b",
    "rdpmc": "0f33",
    "system call without the flag": "0f05",
    "sysenter": "0f34",
    "far return to itself": "6a33 6810000500 48cb 90909090 cd80",
    "far call to the kernel": "ff1c25 00000700",
    "compatibility code": "6a23 6810000500 48cb 90909090 48 b855550000 cd80",
    "iret to itself": "6a2b 6800000900 6802020000 6a33 6820000500 48cf" + "90" * 16 + "cd80",
    "iret to the kernel": "6a18 6800000900 6a02 6a10 6820000500 48cf",
    "single step": "9c 810c2400010000 9d 90 90",
    "protection keys": "31c9 0f01ee",
}


def furnish(guest: TinyGuest | NativeGuest) -> None:
    """What both have besides their code."""
    guest.put(TICK, HALT)
    guest.gate(0x80, TICK, level=3)
    guest.gate(3, TICK, level=3)
    guest.put(0x4_0F40, HALT)
    guest.words[GDT + 0x20 >> 3] = 0x00CF_FB00_0000_FFFF  # 32-bit code of ring 3
    guest.words[GDT + 0x38 >> 3] = 0x0000_8900_0000_0067
    guest.words[GDT + 0x48 >> 3] = TICK & 0xFFFF | KERNEL_CODE << 16 | 0x8C << 40 | (TICK >> 16) << 48
    guest.memory[DATA + 4 : DATA + 6] = KERNEL_CODE.to_bytes(2, "little")
    guest.tables.map(0xE_0000, 0xE_0001)
    guest.tables.map(GDT, GDT | 3)


def native(kernel: str, program: str) -> tuple[object, ...]:
    guest = NativeGuest(kernel, program)
    furnish(guest)
    outcome = guest.run()
    cpu = guest.cpu
    found = (outcome.kind, guest.events, tuple(cpu.gpr), cpu.rip, cpu.rflags, cpu.cpl, cpu.cr2, content(guest))
    guest.close()
    return found


def deprivileged(kernel: str, program: str, mode: str) -> tuple[object, ...]:
    guest = TinyGuest(kernel, program, LoadTimeTranslator(mode))
    furnish(guest)
    outcome = guest.run()
    assert guest.levels == {3}
    cpu = guest.vcpu
    found = (outcome.kind, guest.events, tuple(cpu.gpr), cpu.rip, cpu.rflags, cpu.cpl, cpu.cr2, content(guest))
    guest.close()
    return found


def content(guest: TinyGuest | NativeGuest) -> list[tuple[int, int]]:
    """All words that are not 0, accessed and dirty bits of tables aside."""
    found = []
    for at, word in enumerate(guest.words):
        if word:
            table = at >= guest.tables.root >> 3
            found.append((at * 8, word & ~0x60 if table else word))
    return found


@pytest.mark.parametrize("mode", ["trap", "inline"])
@pytest.mark.parametrize("name", KERNEL_CASES)
def test_a_kernel_cannot_tell(name: str, mode: str) -> None:
    code = KERNEL_CASES[name] + STORE + HALT
    assert deprivileged(code, "", mode) == native(code, "")


@pytest.mark.parametrize("mode", ["trap", "inline"])
@pytest.mark.parametrize("name", USER_CASES)
def test_a_program_cannot_tell(name: str, mode: str) -> None:
    program = USER_CASES[name]
    assert deprivileged(TO_USER, program, mode) == native(TO_USER, program)
