"""A small 32-bit guest in memory, run by the reference or by the hypervisor, and what is left at its end.

Room: `tests`. The code is entered flat and unpaged at `CODE`, sets itself up and ends at a HLT; every vector leads to a
stub of its own that halts, so EIP says what came last. What lies where is said again in `sources.SYMBOLS`.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from bt.loadtime import LoadTimeTranslator
from emulator.board.linux_boot import EntryState
from emulator.isa.x86 import descriptors as d
from emulator.machine import Limits, Machine
from emulator.native.i386 import I386NativeCpu
from emulator.platforms import PLATFORMS
from paravirt.modes.i386.hypervisor import I386Hypervisor

MEMORY = 16 << 20
SHOWN = 0x2_1000
"""Bytes of memory compared at the end: everything that the guests and their tables use."""
GDT, IDT, TSS, OTHER_TSS, DIRECTORY, POINTERS, PAE_DIRECTORY = 0x1000, 0x2000, 0x3000, 0x3100, 0x4000, 0x5000, 0x6000
TABLE, PAE_TABLE, OTHER_PAE_TABLE = 0x7000, 0x8000, 0x2_0000
LDT, TABLE_REGISTERS = 0x1800, 0x1FF0
KERNEL_STACK, DATA, STUBS, GATE_CODE, TASK_CODE, CODE, USER = 0x9000, 0xB000, 0xC000, 0xE000, 0xF000, 0x1_0000, 0x1_8000
GDT_LIMIT, IDT_LIMIT = 0x7F, 0x7FF
KERNEL_ONLY, READ_ONLY, ABSENT = 0x40_0000, 0x60_0000, 0x70_0000
"""Pages that are not like the others, which user code may write to and whose A and D are set."""
_KERNEL_CODE, _KERNEL_DATA, _TASK, _OTHER_TASK = 0x08, 0x10, 0x28, 0x30
_USER_GATES = (3, 4, 0x80)
_TASK_GATE = 0x30
ENTRY = EntryState(
    rip=CODE,
    rsi=0,
    rsp=KERNEL_STACK,
    cr3=0,
    gdt_base=GDT,
    gdt_limit=GDT_LIMIT,
    cs=_KERNEL_CODE,
    ds=_KERNEL_DATA,
    cr0=0x11,
    cr4=0,
    efer=0,
)
_BUSY = 0x200
"""A task register's busy bit may be in the cached copy or not."""


def _flat(attributes: int, base: int = 0, limit: int = 0xFFFF_FFFF) -> int:
    return d.segment_descriptor(base, limit, attributes)


def _gate(selector: int, offset: int, access: int) -> int:
    return offset & 0xFFFF | selector << 16 | access << 40 | (offset >> 16) << 48


_DESCRIPTORS = {
    _KERNEL_CODE: _flat(0xC0_9B00),
    _KERNEL_DATA: _flat(0xC0_9300),
    0x18: _flat(0xC0_FB00),
    0x20: _flat(0xC0_F300),
    _TASK: _flat(0x8900, TSS, 0x67),
    _OTHER_TASK: _flat(0x8900, OTHER_TSS, 0x67),
    0x38: _flat(0x40_F300, DATA, 0xFFF),
    0x40: _flat(0x9300, DATA, 0xFFF),
    0x48: _gate(_KERNEL_CODE, GATE_CODE, 0xEC) | 2 << 32,
    0x50: _flat(0x8200, LDT, 0xFF),
    0x58: _gate(_OTHER_TASK, 0, 0xE5),
    0x60: _flat(0xC0_9B00, CODE),
    0x78: _flat(0xC0_7300),
}


class End(NamedTuple):
    """How a run ended, and what it left behind."""

    kind: str
    general: tuple[int, ...]
    eip: int
    flags: int
    level: int
    controls: tuple[int, ...]
    """CR0, CR2, CR4."""
    segments: tuple[tuple[int, ...], ...]
    """Selector, base, limit, attributes; an empty one's selector alone."""
    memory: bytes


def run(mode: str, kernel: bytes, program: bytes, translator: LoadTimeTranslator | None = None) -> End:
    """Run a guest to its end: natively, or deprivileged in the `mode` of a translator, or by one of an image."""
    limits = Limits(guest_seconds=0.01, host_seconds=20)
    machine = Machine(MEMORY, lambda _: None, platform=PLATFORMS["i386"], limits=limits)
    try:
        fill(machine.memory.view, kernel, program)
        driver: I386NativeCpu | I386Hypervisor
        if mode == "native":
            driver = I386NativeCpu(machine)
        else:
            driver = I386Hypervisor(machine, translator or LoadTimeTranslator(mode, isa="i386"))
        driver.enter(ENTRY)
        outcome = driver.run()
        state = driver if isinstance(driver, I386NativeCpu) else driver.vcpu
        return End(
            outcome.kind.value,
            tuple(value & 0xFFFF_FFFF for value in state.gpr[:8]),
            state.rip,
            state.rflags,
            state.cpl,
            (state.cr0, state.cr2, state.cr4),
            tuple(_comparable(*state.segment(index)) for index in range(8)),
            bytes(machine.memory.view[:SHOWN]),
        )
    finally:
        machine.close()


def _comparable(selector: int, base: int, limit: int, attributes: int) -> tuple[int, ...]:
    return (selector, base, limit, attributes & ~_BUSY) if selector & ~3 else (selector,)


def fill(memory: memoryview, kernel: bytes, program: bytes) -> None:
    """Put a guest and its tables into memory."""
    memory[CODE : CODE + len(kernel)] = kernel
    memory[USER : USER + len(program)] = program
    words, longs = memory.cast("I"), memory.cast("Q")
    for selector, descriptor in _DESCRIPTORS.items():
        longs[(GDT + selector) >> 3] = descriptor
    longs[LDT >> 3] = _flat(0x40_F300, DATA, 0xFFF)
    _put(memory, GATE_CODE, "8b442408 8b5c240c 8ccf ca0800")  # mov eax, [esp+8]; mov ebx, [esp+12]; mov edi, cs; retf 8
    _put(memory, TASK_CODE, "0f00cb 9c 59 89e2 cf fa f4")  # str ebx; pushf; pop ecx; mov edx, esp; iret; cli; hlt
    for vector in range(256):
        stub = STUBS + 8 * vector
        _put(memory, stub, "fa f4")
        longs[(IDT >> 3) + vector] = _gate(_KERNEL_CODE, stub, 0xEE if vector in _USER_GATES else 0x8E)
    longs[(IDT >> 3) + _TASK_GATE] = _gate(_OTHER_TASK, 0, 0xE5)
    _put(memory, TABLE_REGISTERS, struct.pack("<HIxxHI", GDT_LIMIT, GDT, IDT_LIMIT, IDT).hex())
    for at, value in _tasks():
        words[at >> 2] = value
    _map(words, longs)


def _tasks() -> list[tuple[int, int]]:
    """Addresses and words of the two task-state segments (SDM 3A, figure 8-2)."""
    first = {4: KERNEL_STACK - 0x200, 8: _KERNEL_DATA, 28: DIRECTORY, 100: 0x68_0000}
    second = {28: DIRECTORY, 32: TASK_CODE, 36: 2, 40: 0x5555, 56: 0x9800, 60: 0x9900, 96: 0x50, 100: 0x68_0000}
    second |= {72: _KERNEL_DATA, 76: _KERNEL_CODE, 80: _KERNEL_DATA, 84: _KERNEL_DATA}
    return [(base + at, value) for base, task in ((TSS, first), (OTHER_TSS, second)) for at, value in task.items()]


def _map(words: memoryview, longs: memoryview) -> None:
    """64 MiB mapped to itself in both formats, but for 8 MiB on, where the first pages are once more."""
    special = {KERNEL_ONLY: KERNEL_ONLY | 0x63, READ_ONLY: READ_ONLY | 0x65, ABSENT: 0}
    for index in range(16):
        words[(DIRECTORY >> 2) + index] = index << 22 | 0xE7
    words[(DIRECTORY >> 2) + 1] = TABLE | 0x67
    words[(DIRECTORY >> 2) + 2] = 0xE7
    longs[POINTERS >> 3] = PAE_DIRECTORY | 1
    for index in range(32):
        longs[(PAE_DIRECTORY >> 3) + index] = index << 21 | 0xE7
    longs[(PAE_DIRECTORY >> 3) + 2] = PAE_TABLE | 0x67
    longs[(PAE_DIRECTORY >> 3) + 3] = OTHER_PAE_TABLE | 0x67
    longs[(PAE_DIRECTORY >> 3) + 4] = 0xE7
    for index in range(1024):
        page = 0x40_0000 + (index << 12)
        entry = special.get(page, page | 0x67)
        words[(TABLE >> 2) + index] = entry
        longs[((PAE_TABLE if index < 512 else OTHER_PAE_TABLE) >> 3) + index % 512] = entry


def _put(memory: memoryview, address: int, code: str) -> None:
    data = bytes.fromhex(code)
    memory[address : address + len(data)] = data
