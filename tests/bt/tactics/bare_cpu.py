"""A bare CPU at user level for the proof of fixups: registers and flags in, one run, registers and flags out.

Room: tests. Raw Unicorn without a hypervisor: what stands between a fixup and the model is the CPU alone. The CPU is
brought to CPL 3 by a real IRETQ, so that CLI, HLT and the interrupt flag behave as they will for a deprivileged guest.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from unicorn import UC_ARCH_X86, UC_HOOK_INTR, UC_MODE_64, Uc, UcError
from unicorn import x86_const as x86

from paravirt.abi import HYPERVISOR_BASE, INTERRUPT_DELTA, INTERRUPT_PENDING, IO_PRIVILEGE, SHARED_PAGE, TASK_SWITCHED

NAMES = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", *(f"R{number}" for number in range(8, 16)))
REGISTERS = [getattr(x86, f"UC_X86_REG_{name}") for name in NAMES]
TABLES, STACK, STACK_SIZE, SITE_PAGE = 0x10000, 0x20000, 0x4000, 0xFFFF_FFFF_8100_0000
NEAR = SITE_PAGE + 0x1F00
"""Memory within reach of the site's RIP-relative operands."""
ARITHMETIC = 0xCD5
"""CF PF AF ZF SF DF OF."""
MASK = (1 << 64) - 1
_CODE, _DATA = 0x00AFFB000000FFFF, 0x00CFF3000000FFFF


def physical(address: int) -> int:
    """Where an address lies in the memory of `BareCpu`."""
    if address >= HYPERVISOR_BASE:
        return address - HYPERVISOR_BASE + 0x40_0000
    return address - SITE_PAGE + 0x20_0000 if address >= SITE_PAGE else address


@dataclass
class State:
    """What a guest can see."""

    registers: list[int]
    flags: int
    """ARITHMETIC bits only."""
    delta: int
    pending: int
    stack: bytes
    """STACK_SIZE bytes from STACK on."""
    rip: int = 0
    words: list[int] = field(default_factory=list)
    """Copies of CR0 to CR4."""
    near: int = 0
    """The eight bytes at NEAR."""
    privilege: int = 0
    """The virtual IOPL at its place in RFLAGS."""
    switched: list[int] = field(default_factory=lambda: [0] * 3)
    """The words at TASK_SWITCHED."""


class BareCpu:
    """One CPU, reused for many runs."""

    def __init__(self) -> None:
        uc: Any = Uc(UC_ARCH_X86, UC_MODE_64)
        self._uc = uc
        uc.mem_map(0, 0x60_0000)
        self._page_tables(uc)
        uc.mem_write(TABLES, struct.pack("<QQQQQQQQ", 0, 0, 0, 0, 0, _DATA, _CODE, 0))
        uc.reg_write(x86.UC_X86_REG_GDTR, (0, TABLES, 0x3F, 0))
        uc.mem_write(STACK + 0x800, struct.pack("<QQQQQ", SITE_PAGE + 0x1FF0, 0x33, 0x202, STACK + 0x1000, 0x2B))
        uc.mem_write(physical(SITE_PAGE), b"\x48\xcf")
        uc.reg_write(x86.UC_X86_REG_RSP, STACK + 0x800)
        uc.emu_start(SITE_PAGE, SITE_PAGE + 0x1FF0)
        assert uc.reg_read(x86.UC_X86_REG_CS) & 3 == 3
        self._context = uc.context_save()
        self.faults: list[int] = []
        uc.hook_add(UC_HOOK_INTR, self._interrupt)

    @staticmethod
    def _page_tables(uc: Any) -> None:
        """Large pages, for everyone and writable: low memory, the site's 2 MiB, the hypervisor's window."""
        rights = 7
        top, directory = 0x1000, 0x3000
        uc.mem_write(top, struct.pack("<Q", 0x2000 | rights))
        uc.mem_write(top + 511 * 8, struct.pack("<Q", 0x2000 | rights))
        uc.mem_write(0x2000, struct.pack("<Q", directory | rights))
        uc.mem_write(0x2000 + 510 * 8, struct.pack("<QQ", 0x4000 | rights, 0x5000 | rights))
        uc.mem_write(directory, struct.pack("<Q", 0 | rights | 0x80))
        uc.mem_write(0x4000 + (SITE_PAGE >> 21 & 511) * 8, struct.pack("<Q", 0x20_0000 | rights | 0x80))
        uc.mem_write(0x5000 + 511 * 8, struct.pack("<Q", 0x40_0000 | rights | 0x80))
        uc.reg_write(x86.UC_X86_REG_CR3, top)
        uc.reg_write(x86.UC_X86_REG_CR4, uc.reg_read(x86.UC_X86_REG_CR4) | 0x20)
        uc.reg_write(x86.UC_X86_REG_CR0, uc.reg_read(x86.UC_X86_REG_CR0) | 0x8000_0001)

    def _interrupt(self, uc: Any, vector: int, _: object) -> None:
        self.faults.append(vector)
        uc.emu_stop()

    def run(self, state: State, code: dict[int, bytes], start: int, until: int) -> State:
        """Run from `start` until RIP is `until` or a fault; `code` is placed by address."""
        uc = self._uc
        uc.context_restore(self._context)
        for address, data in code.items():
            uc.mem_write(physical(address), data)
            uc.ctl_remove_cache(address, address + len(data))
        uc.mem_write(STACK, state.stack)
        uc.mem_write(physical(SHARED_PAGE), bytes(0x1000))
        uc.mem_write(physical(SHARED_PAGE) + INTERRUPT_DELTA, struct.pack("<q", state.delta))
        uc.mem_write(physical(SHARED_PAGE) + INTERRUPT_PENDING, struct.pack("<Q", state.pending))
        uc.mem_write(physical(SHARED_PAGE) + IO_PRIVILEGE, struct.pack("<Q", state.privilege))
        uc.mem_write(physical(NEAR), struct.pack("<Q", state.near))
        for index, word in enumerate(state.words):
            uc.mem_write(physical(SHARED_PAGE) + 0x80 + 8 * index, struct.pack("<Q", word))
        uc.mem_write(physical(SHARED_PAGE) + TASK_SWITCHED, struct.pack("<3Q", *state.switched))
        for register, value in zip(REGISTERS, state.registers, strict=True):
            uc.reg_write(register, value)
        uc.reg_write(x86.UC_X86_REG_RFLAGS, state.flags | 0x202)
        self.faults = []
        try:
            uc.emu_start(start, until, timeout=2_000_000)
        except UcError as error:
            raise AssertionError(f"{error} at {uc.reg_read(x86.UC_X86_REG_RIP):#x}") from error
        flags = uc.reg_read(x86.UC_X86_REG_RFLAGS)
        assert flags & 0x200, "the real interrupt flag must stay set"
        assert uc.reg_read(x86.UC_X86_REG_CS) & 3 == 3
        shared = uc.mem_read(physical(SHARED_PAGE), 0x10)
        delta, pending = struct.unpack("<qQ", shared)
        return State(
            [uc.reg_read(register) for register in REGISTERS],
            flags & ARITHMETIC,
            delta,
            pending,
            bytes(uc.mem_read(STACK, STACK_SIZE)),
            uc.reg_read(x86.UC_X86_REG_RIP),
            list(
                struct.unpack(f"<{len(state.words)}Q", uc.mem_read(physical(SHARED_PAGE) + 0x80, 8 * len(state.words)))
            ),
            int.from_bytes(uc.mem_read(physical(NEAR), 8), "little"),
            state.privilege,
            list(struct.unpack("<3Q", uc.mem_read(physical(SHARED_PAGE) + TASK_SWITCHED, 24))),
        )
