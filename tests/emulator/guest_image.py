"""A guest of a few bytes in a machine's memory: page tables, descriptors, gates and code.

Room: `tests`. The kernel's code is at `KERNEL`, the program's at `PROGRAM`; the first MiB is identity-mapped and
open to both. Every vector leads to a stub that halts with interrupts off, which ends a run. Who runs it, the reference
or a hypervisor, is the tests' affair.
"""

from __future__ import annotations

from emulator.board.linux_boot import EntryState
from emulator.isa.x86 import walk as w
from emulator.isa.x86.walk import FRAME_MASK

MEMORY = 4 << 20
TABLES, GDT, IDT, TSS = 0x10_0000, 0x6_0000, 0x6_1000, 0x6_2000
KERNEL, PROGRAM, DATA = 0x4_0000, 0x5_0000, 0x7_0000
KERNEL_STACK, USER_STACK, STUBS = 0x8_1000, 0x9_0000, 0xA_0000
KERNEL_CODE, KERNEL_DATA, USER_DATA, USER_CODE, TASK = 0x10, 0x18, 0x2B, 0x33, 0x38
USER_TABLE = w.PRESENT | w.WRITABLE | w.USER
HALT = "fa f4"
"""cli; hlt: the end of a run, at CPL 0."""
TO_USER = "48cf"
"""iretq, with the frame that `GuestImage` has put on the stack."""


ENTRY = EntryState(rip=KERNEL, rsi=0, rsp=KERNEL_STACK - 0x100, cr3=TABLES, gdt_base=GDT, gdt_limit=0xFF)
"""How the kernel is entered."""


class GuestTables:
    """Four-level tables in guest memory, made as they are needed."""

    def __init__(self, memory: memoryview, first: int = 0x10_0000) -> None:
        self.words = memory.cast("Q")
        self._next = first
        self.root = self.table()

    def table(self) -> int:
        """Physical address of a fresh, empty table."""
        self._next += 4096
        return self._next - 4096

    def place(self, address: int, level: int = 1, root: int | None = None) -> int:
        """Index of the word that holds the level-`level` entry for `address`; tables above are made."""
        table = self.root if root is None else root
        for upper in range(4, level, -1):
            at = (table >> 3) + (address >> (upper * 9 + 3) & 511)
            if not self.words[at] & 1:
                self.words[at] = self.table() | USER_TABLE
            table = self.words[at] & FRAME_MASK
        return (table >> 3) + (address >> (level * 9 + 3) & 511)

    def map(self, address: int, entry: int, level: int = 1, root: int | None = None) -> None:
        """Set the entry for `address`."""
        self.words[self.place(address, level, root)] = entry

    def entry(self, address: int, level: int = 1) -> int:
        """The entry for `address`."""
        return self.words[self.place(address, level)]


class GuestImage:
    """The guest's memory, written."""

    def __init__(self, memory: memoryview, kernel: str, program: str) -> None:
        self.memory = memory
        self.words = memory.cast("Q")
        self.tables = GuestTables(memory, TABLES)
        for page in range(0, 0x10_0000, 4096):
            self.tables.map(page, page | USER_TABLE)
        self._describe()
        self.put(KERNEL, kernel)
        self.put(PROGRAM, program)

    def _describe(self) -> None:
        for selector, descriptor in (
            (KERNEL_CODE, 0x00AF_9B00_0000_FFFF),
            (KERNEL_DATA, 0x00CF_9300_0000_FFFF),
            (USER_DATA & ~7, 0x00CF_F300_0000_FFFF),
            (USER_CODE & ~7, 0x00AF_FB00_0000_FFFF),
        ):
            self.words[GDT + selector >> 3] = descriptor
        for vector in range(256):
            self.put(STUBS + 4 * vector, HALT)
            self.gate(vector, STUBS + 4 * vector)
        self.words[TSS + 4 >> 3] = 0
        self.memory[TSS + 4 : TSS + 12] = KERNEL_STACK.to_bytes(8, "little")
        self.memory[TSS + 0x66 : TSS + 0x68] = (0x68).to_bytes(2, "little")
        self.memory[TSS + 0x68 : TSS + 0x168] = b"\xff" * 0x100
        for index, word in enumerate((PROGRAM, USER_CODE, 0x202, USER_STACK, USER_DATA)):
            self.words[(KERNEL_STACK - 0x100 >> 3) + index] = word

    def put(self, address: int, code: str) -> None:
        """Write bytes given in hexadecimal."""
        raw = bytes.fromhex(code)
        self.memory[address : address + len(raw)] = raw

    def gate(self, vector: int, handler: int, level: int = 0, trap: bool = False) -> None:
        """Set the gate of a vector."""
        kind = (0x8F if trap else 0x8E) | level << 5
        self.words[(IDT >> 3) + 2 * vector] = handler & 0xFFFF | KERNEL_CODE << 16 | kind << 40 | (handler >> 16) << 48
        self.words[(IDT >> 3) + 2 * vector + 1] = handler >> 32

    def allow_port(self, port: int) -> None:
        """Open a port in the I/O permission bitmap."""
        self.memory[TSS + 0x68 + (port >> 3)] &= ~(1 << (port & 7))
