"""Where the hypervisor's own memory lies in the engine's physical address space.

Room: `paravirt`. Guest-physical memory is engine-physical memory at the same addresses; everything of the hypervisor
lies apart from it, where no guest table entry can point: each instruction set's walker refuses guest entries with such
an address. A `Layout` is data; every mode of `paravirt.modes` has one.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """Engine-physical addresses, in whole pages."""

    tables: int
    """Shadow page tables."""
    tables_size: int
    """Bytes."""
    code: int
    """Translated copies of guest code pages."""
    code_count: int
    """4 KiB each."""
    window: int
    """The hypervisor window (fixups, shared page), as `abi.Window` lays it out."""
    window_size: int
    """Bytes."""
    open_bus: int
    """A page of device memory that stands for every guest-physical address that nothing backs."""


TABLES_BASE = 1 << 36
TABLE_COUNT = 8192
CODE_BASE = TABLES_BASE + (1 << 32)
CODE_COUNT = 32768
WINDOW_BASE = CODE_BASE + (1 << 32)
WINDOW_SIZE = 2 << 20

DESCRIPTORS_BASE = WINDOW_BASE + (1 << 24)
"""x86: the sanitised copy of the guest's GDT, up to 17 pages."""
DESCRIPTORS_SIZE = 17 * 4096

OPEN_BUS = DESCRIPTORS_BASE + (1 << 24)

KINDS_BASE = OPEN_BUS + (1 << 24)
"""x86-64: what each frame of the guest's memory is, a byte each."""

SOURCES_BASE = KINDS_BASE + (1 << 30)
"""x86-64: what each shadow table mirrors, a frame's number of 32 bits each."""

X86_64 = Layout(TABLES_BASE, TABLE_COUNT << 12, CODE_BASE, CODE_COUNT, WINDOW_BASE, WINDOW_SIZE, OPEN_BUS)
"""Above all that the walker of `emulator.isa.x86.walk` lets a guest address (`PHYSICAL_BITS`)."""

ARMV7 = Layout(
    tables=0xC000_0000,
    tables_size=16 << 20,
    code=0xC400_0000,
    code_count=16384,
    window=0xC900_0000,
    window_size=2 << 20,
    open_bus=0xC980_0000,
)
"""A short descriptor reaches 32 bits: guests have what lies below, and memory up to here."""

MIPS32 = Layout(
    tables=0x6800_0000,
    tables_size=4096,
    code=0x4000_0000,
    code_count=32768,
    window=0x6000_0000,
    window_size=0x7_2000,
    open_bus=0x7000_0000,
)
"""Above KSEG0's and KSEG1's reach. There are no tables, but a page of registers: the engine takes its translations from
the hypervisor. What a TLB entry of the guest's points to above its memory and devices is nothing, so that it cannot
reach here."""

AARCH64 = Layout(TABLES_BASE, TABLE_COUNT << 12, CODE_BASE, CODE_COUNT, WINDOW_BASE, WINDOW_SIZE, OPEN_BUS)
"""Above all memory and devices of the board; guests are never given a mapping of what is neither."""
