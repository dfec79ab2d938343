"""A processor made of plain values, for the tests of the x86 semantics.

Room: `tests`. Memory is a dictionary of pages; an access to a page that is absent is a page fault and
one to a non-canonical address fails the test, since the semantics must have checked it.
"""

import struct

from emulator.isa.x86 import descriptors as d
from emulator.isa.x86.processor import CS, DS, ES, LDTR, MASK64, PAGE_FAULT, SS, TR, Fault

GDT = 0x1000
IDT = 0x2000
TSS = 0x4000
LDT = 0x5000
STACK_TOP = 0x8000
KERNEL_STACK = 0xA000
FAULT_STACK = 0xC000
HANDLERS = 0x10_0000
"""Handler of vector n is at `HANDLERS + 16 * n`."""

KERNEL_CS, KERNEL_DS, USER_CS32, USER_DS, USER_CS, TASK, TABLE = 0x08, 0x10, 0x1B, 0x23, 0x2B, 0x40, 0x50
FREE = 0x60
"""The first GDT selector that the tests may fill."""

GDT_WORDS = (
    0,
    d.segment_descriptor(0, d.FLAT_LIMIT, d.KERNEL_CODE),
    d.segment_descriptor(0, d.FLAT_LIMIT, d.FLAT_DATA),
    d.segment_descriptor(0, d.FLAT_LIMIT, d.USER_CODE_32),
    d.segment_descriptor(0, d.FLAT_LIMIT, d.USER_DATA),
    d.segment_descriptor(0, d.FLAT_LIMIT, d.USER_CODE),
    0,
    0,
    *d.system_descriptor(TSS, 0x67, d.PRESENT | d.TYPE_TSS_BUSY << 8),
    *d.system_descriptor(LDT, 0xFFF, d.PRESENT | d.TYPE_LDT << 8),
)


_PAGES: dict[int, bytes] = {}
"""The memory of a new processor, filled by the first one."""


class MemoryProcessor:
    """A `Processor` at CPL 0 in 64-bit mode, with tables, a TSS and stacks in place."""

    def __init__(self) -> None:
        self.gpr = memoryview(bytearray(128)).cast("Q")
        self.rip = 0x9_0000
        self.rflags = 2
        self.cr0, self.cr2, self.cr4 = 0x8005_0033, 0, 0x20
        self.efer, self.star, self.lstar, self.cstar, self.fmask = 0xD01, 0x1B_0008 << 32, 0x7_0000, 0, 0x4700
        self.gdt_base, self.gdt_limit = GDT, 0xFFF
        self.idt_base, self.idt_limit = IDT, 0xFFF
        self.level = 0
        self.user_accesses = 0
        self.segments = [(0, 0, 0, 0)] * 8
        self.pages = {page: bytearray(content) for page, content in _PAGES.items()}
        self.segments[LDTR] = (TABLE, LDT, 0xFFF, d.PRESENT | d.TYPE_LDT << 8)
        self.segments[TR] = (TASK, TSS, 0x67, d.PRESENT | d.TYPE_TSS_BUSY << 8)
        if not _PAGES:
            self._fill_tables()
        self.run_kernel()

    def _fill_tables(self) -> None:
        self.pages = {page: bytearray(4096) for page in range(0x1, 0x10)}
        for index, word in enumerate(GDT_WORDS):
            self.write(GDT + 8 * index, 8, word)
        for vector in range(256):
            self.set_gate(vector)
        self.write(TSS + 4, 8, KERNEL_STACK)
        for stack in range(1, 8):
            self.write(TSS + 28 + 8 * stack, 8, FAULT_STACK)
        _PAGES.update((page, bytes(content)) for page, content in self.pages.items())

    def run_kernel(self) -> None:
        """64-bit code at CPL 0."""
        self.level = 0
        self.segments[CS] = (KERNEL_CS, 0, d.FLAT_LIMIT, d.KERNEL_CODE)
        self.segments[SS] = (KERNEL_DS, 0, d.FLAT_LIMIT, d.FLAT_DATA)
        self.gpr[4] = STACK_TOP

    def run_user(self, bits: int = 64) -> None:
        """64- or 32-bit code at CPL 3."""
        self.level = 3
        self.segments[CS] = (
            (USER_CS, 0, d.FLAT_LIMIT, d.USER_CODE) if bits == 64 else (USER_CS32, 0, d.FLAT_LIMIT, d.USER_CODE_32)
        )
        for index in (SS, DS, ES):
            self.segments[index] = (USER_DS, 0, d.FLAT_LIMIT, d.USER_DATA)
        self.gpr[4] = STACK_TOP

    def set_gate(self, vector: int, selector: int = KERNEL_CS, kind: int = d.TYPE_INTERRUPT_GATE, **more: int) -> None:
        """Point `vector` at its handler; `more` is `dpl`, `stack`, `present` of `descriptors.gate`."""
        present = bool(more.pop("present", True))
        low, high = d.gate(selector, HANDLERS + 16 * vector, kind, present=present, **more)
        self.write(IDT + 16 * vector, 8, low)
        self.write(IDT + 16 * vector + 8, 8, high)

    def set_descriptor(self, selector: int, word: int) -> None:
        """Put an 8-byte descriptor where `selector` names it."""
        self.write((LDT if selector & 4 else GDT) + (selector & 0xFFF8), 8, word)

    def push(self, *words: int, size: int = 8) -> None:
        """Push `words`, the first one first."""
        for word in words:
            self.gpr[4] -= size
            self.write(self.gpr[4], size, word)

    def stack(self, count: int) -> list[int]:
        """The `count` 64-bit words on top of the stack, top first."""
        return [self.read(self.gpr[4] + 8 * index, 8) for index in range(count)]

    def registers(self) -> tuple[object, ...]:
        """Everything but memory, comparable."""
        return self.gpr.tobytes(), self.rip, self.rflags, self.level, tuple(self.segments)

    @property
    def cpl(self) -> int:
        return self.level

    def task_switched(self, cr3: int) -> None:
        raise AssertionError("long mode switches no tasks")

    def set_privilege(self, cpl: int) -> None:
        self.level = cpl

    def segment(self, index: int) -> tuple[int, int, int, int]:
        return self.segments[index]

    def set_segment(self, index: int, selector: int, base: int, limit: int, attributes: int) -> None:
        assert 0 <= selector <= 0xFFFF
        assert 0 <= base <= MASK64
        assert 0 <= limit <= 0xFFFF_FFFF
        assert attributes & ~d.ATTRIBUTES == 0
        self.segments[index] = (selector, base, limit, attributes)

    def read(self, address: int, size: int) -> int:
        return int.from_bytes(bytes(self._byte(address + step, False) for step in range(size)), "little")

    def write(self, address: int, size: int, value: int) -> None:
        assert 0 <= value < 1 << 8 * size
        if address & 0xFFF <= 0x1000 - size and address >= 0:
            page = self.pages.get(address >> 12)
            if page is not None:
                page[address & 0xFFF : (address & 0xFFF) + size] = struct.pack("<Q", value)[:size]
                return
        for step in range(size):
            self._byte(address + step, True)
        for step in range(size):
            self.pages[(address + step & MASK64) >> 12][address + step & 0xFFF] = value >> 8 * step & 0xFF

    def read_user(self, address: int, size: int) -> int:
        self.user_accesses += 1
        return self.read(address, size)

    def write_user(self, address: int, size: int, value: int) -> None:
        self.user_accesses += 1
        self.write(address, size, value)

    def _byte(self, address: int, store: bool) -> int:
        assert 0 <= address < 1 << 64 or address - (1 << 64) < 8
        address &= MASK64
        assert not address + 0x8000_0000_0000 >> 48 & 0xFFFF, f"{address:#x} is not canonical"
        page = self.pages.get(address >> 12)
        if page is None:
            raise Fault(PAGE_FAULT, 2 if store else 0, address)
        return page[address & 0xFFF]
