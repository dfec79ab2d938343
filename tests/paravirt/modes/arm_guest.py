"""Small ARMv7 guests, assembled from source, whose kernel has its MMU on: what the tests of this folder run.

The kernel's code, data and vectors are in a section mapped in place, for the kernel alone; pages from `PAGES` on are
the test's. Every exception ends the run, R12 saying which, but for handlers that a test gives.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from keystone import KS_ARCH_ARM, KS_MODE_ARM, KS_MODE_THUMB, Ks

from bt.loadtime import LoadTimeTranslator
from emulator.board.arm_boot import ArmEntry
from emulator.machine import EndKind, Limits, Machine
from emulator.platforms import PLATFORMS
from paravirt.modes.arm.hypervisor import ArmHypervisor

BASE: Final = 0x4000_0000
CODE, VECTORS = BASE + 0x1000, BASE + 0x2000
ROOT, SECOND = BASE + 0x4000, BASE + 0x8000
"""The first-level table, and the second-level table of `PAGES`."""
FREE: Final = BASE + 0x10_0000
"""Frames for the pages of a test."""
PAGES: Final = 0x1000_0000
"""A MiB that is mapped by pages."""
KERNEL_SECTION, USER_SECTION = 0x40E, 0xC0E
"""AP 01 and AP 11, domain 0."""
KERNEL_PAGE, READ_PAGE, USER_PAGE, NEVER = 0x01E, 0x02E, 0x03E, 1
OFF: Final = "movw r0, #8; movt r0, #0x8400; .word 0xe1400070"
NAMES: Final = ("reset", "undefined", "call", "fetch", "data", "", "interrupt", "")


def assemble(source: str, address: int, *, thumb: bool = False) -> bytes:
    """Machine code, at the address where it will lie."""
    encoded, _ = Ks(KS_ARCH_ARM, KS_MODE_THUMB if thumb else KS_MODE_ARM).asm(source, address)
    return bytes(encoded)


def constant(register: int, value: int) -> str:
    """A number into a register."""
    return f"movw r{register}, #{value & 0xFFFF:#x}; movt r{register}, #{value >> 16:#x}; "


def page(number: int) -> int:
    """Address of a page of the test's."""
    return PAGES + (number << 12)


class MappedGuest:
    """`code` runs in Supervisor mode with the MMU on and ends the run; `frames` are the contents of frames at `FREE`,
    `pages` the second-level descriptors of `PAGES` with the frame's number in place of its address."""

    def __init__(
        self,
        code: str,
        mode: str = "inline",
        *,
        pages: Mapping[int, tuple[int, int]] | None = None,
        frames: Mapping[int, bytes] | None = None,
        sections: Mapping[int, int] | None = None,
        link: int = 1,
        dacr: int = 1,
        handlers: Mapping[str, str] | None = None,
        technique: str = "",
        control: int = 1,
    ) -> None:
        """`sections`: first-level descriptors by address; `link`: the bits of the descriptor of `PAGES`."""
        self.machine = Machine(
            4 << 20, lambda _data: None, platform=PLATFORMS["armv7"], limits=Limits(guest_seconds=1.0, host_seconds=20)
        )
        first = {BASE: BASE | KERNEL_SECTION, PAGES: SECOND | link, **(sections or {})}
        for address, descriptor in first.items():
            self._put(ROOT + (address >> 18), struct.pack("<I", descriptor))
        for number, (frame, bits) in (pages or {}).items():
            self._put(SECOND + 4 * number, struct.pack("<I", FREE + (frame << 12) | bits))
        for number, contents in (frames or {}).items():
            self._put(FREE + (number << 12), contents)
        begin = constant(1, ROOT) + "mcr p15, 0, r1, c2, c0, 0; " + constant(1, dacr) + "mcr p15, 0, r1, c3, c0, 0; "
        begin += constant(1, VECTORS) + "mcr p15, 0, r1, c12, c0, 0; mrc p15, 0, r1, c1, c0, 0; "
        begin += f"orr r1, r1, #{control}; mcr p15, 0, r1, c1, c0, 0; .word 0xf57ff06f; mov r12, #0; "
        self._put(CODE, assemble(f"{begin}{code}; {OFF}", CODE))
        for number, name in enumerate(NAMES):
            at = VECTORS + 0x100 + 0x80 * number
            self._put(VECTORS + 4 * number, assemble(f"b {at:#x}", VECTORS + 4 * number))
            self._put(at, assemble((handlers or {}).get(name, f"mov r12, #{number}; {OFF}"), at))
        self.hypervisor = ArmHypervisor(self.machine, LoadTimeTranslator(mode, isa="armv7"))
        if technique:
            self.hypervisor.choose_technique(technique)
        self.hypervisor.enter(ArmEntry(CODE, 0))

    def _put(self, address: int, contents: bytes) -> None:
        self.machine.memory.view[address - BASE : address - BASE + len(contents)] = contents

    def run(self) -> list[int]:
        """The general registers at the end."""
        outcome = self.hypervisor.run()
        assert outcome.kind is EndKind.POWER_OFF, outcome
        return list(self.hypervisor.vcpu.gpr)

    def word(self, address: int) -> int:
        """A word of memory."""
        return self.machine.memory.read(address, 4)

    @property
    def ended_by(self) -> str:
        """The exception that ended the run."""
        return NAMES[self.hypervisor.vcpu.gpr[12]] if self.hypervisor.vcpu.gpr[12] else ""

    @property
    def system(self) -> dict[str, int]:
        """System registers that are kept by value."""
        return self.hypervisor.vcpu.system


def to_user(address: int, *, thumb: bool = False) -> str:
    """Go on in User mode."""
    return constant(9, 0x30 if thumb else 0x10) + "msr spsr_cxsf, r9; " + constant(14, address) + "movs pc, lr"
