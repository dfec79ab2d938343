"""A look at an x86 processor, of 64 or of 32 bits.

Room: `bt/verify/views`. Sections of Intel's manual ("SDM") are named where a number comes from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from bt.verify.views import GENERAL
from bt.verify.views.view import PAGE, View, up_to_the_page
from emulator.isa.x86.walk32 import PAE_ROOT, look_up
from emulator.native.x86 import X86NativeCpu
from paravirt.modes.x86.hypervisor import X86Hypervisor

if TYPE_CHECKING:
    from bt.session import Session

_SEGMENTS: Final = ("ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR")
_FRAME: Final = 0x000F_FFFF_FFFF_F000
_PRESENT, _LARGE = 1, 1 << 7
_LONG_CODE: Final = 1 << 21
"""Of a code segment's attributes: 64-bit code."""
_BUSY: Final = 1 << 9
"""Of a task register's attributes: whether the busy bit that LTR sets is in the cached copy, too."""


class X86View(View):
    """A 64-bit guest's processor."""

    ROOT = _FRAME

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        driver = session.driver
        assert isinstance(driver, X86NativeCpu | X86Hypervisor)
        self.cpu = driver if isinstance(driver, X86NativeCpu) else driver.vcpu

    @property
    def pc(self) -> int:
        """RIP."""
        return self.cpu.rip

    @property
    def level(self) -> int:
        """CPL."""
        return self.cpu.cpl

    @property
    def bits(self) -> int:
        """64, or 32 in compatibility mode."""
        return 64 if self.cpu.segment(1)[3] & _LONG_CODE else 32

    def cr3(self) -> int:
        """CR3 whole."""
        cpu = self.cpu
        return int(cpu.registers.control(3)) if isinstance(cpu, X86NativeCpu) else cpu.cr3

    def space(self) -> int:
        """The frame in CR3."""
        return self.cr3() & self.ROOT

    def registers(self) -> tuple[int, ...]:
        """The general registers and RFLAGS."""
        return (*map(int, self.cpu.gpr), self.cpu.rflags)

    def code(self, address: int) -> bytes:
        """By the guest's own tables of four levels."""
        return peek(self.memory.words, self.memory.view, self.space(), address)

    def loader_tables(self) -> frozenset[int]:
        """What CR3 leads to."""
        return tables_from(self.memory.words, self.memory.size, self.space())

    def final(self) -> Iterator[tuple[str, int]]:
        """What both drivers have, from their `state`."""
        state = self.session.driver.state
        gpr, rip, rflags, level, controls, syscall, tables, segments = state[:8]
        yield from zip(GENERAL, gpr, strict=True)
        yield from (("RIP", rip), ("RFLAGS", rflags), ("CPL", level))
        yield from zip(("CR0", "CR2", "CR3", "CR4"), controls[:4], strict=True)
        yield "EFER", controls[-1]
        yield from zip(("STAR", "LSTAR", "CSTAR", "FMASK", "KERNEL_GS_BASE"), syscall, strict=True)
        yield from zip(("GDTR.base", "GDTR.limit", "IDTR.base", "IDTR.limit"), tables, strict=True)
        for name, (selector, base, limit, attributes) in zip(_SEGMENTS, segments, strict=True):
            kept = attributes & ~_BUSY if name == "TR" else attributes
            yield from ((f"{name}.selector", selector), (f"{name}.base", base))
            yield from ((f"{name}.limit", limit), (f"{name}.attributes", kept))


class I386View(X86View):
    """A 32-bit guest's processor; it begins without paging."""

    ROOT = PAE_ROOT

    def code(self, address: int) -> bytes:
        """By the guest's segments and tables."""
        cpu = self.cpu
        physical = look_up(self.memory.view, cpu.cr0, cpu.cr4, self.cr3(), address + cpu.segment(1)[1])
        return up_to_the_page(self.memory.view, physical)

    def loader_tables(self) -> frozenset[int]:
        """There are none."""
        return frozenset()


def peek(words: memoryview, memory: memoryview, root: int, address: int) -> bytes:
    """Up to 15 bytes of the page at a guest-virtual address; nothing is marked as accessed. Empty where unmapped."""
    if (address + 0x8000_0000_0000) >> 48 & 0xFFFF:
        return b""
    entry, shift = root | _PRESENT, 48
    while shift > 12:
        table, shift = entry & _FRAME, shift - 9
        at = (table >> 3) + (address >> shift & 511)
        if not table + PAGE <= len(memory):
            return b""
        entry = words[at]
        if not entry & _PRESENT:
            return b""
        if entry & _LARGE and shift in (30, 21):
            break
    mask = (1 << shift) - 1
    return up_to_the_page(memory, entry & _FRAME & ~mask | address & mask)


def tables_from(words: memoryview, size: int, root: int) -> frozenset[int]:
    """Page numbers of all page tables that are reachable from `root`."""
    found: set[int] = set()

    def visit(table: int, level: int) -> None:
        if table + PAGE > size or table >> 12 in found:
            return
        found.add(table >> 12)
        if level == 1:
            return
        for at in range(table >> 3, (table >> 3) + 512):
            entry = words[at]
            if entry & _PRESENT and not (entry & _LARGE and level < 4):
                visit(entry & _FRAME, level - 1)

    visit(root & _FRAME, 4)
    return frozenset(found)
