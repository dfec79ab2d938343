"""Stacks of 32-bit protected mode: pushes and pops through a segment's base, limit and width, and stacks of a TSS.

Room: `emulator/isa/x86`. For delivery and far transfers outside long mode (Intel SDM vol. 3A 5.8.5, 6.12 and 7.2.1).
A push is checked as a whole before any of it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emulator.isa.x86.descriptors import (
    ACCESSED,
    CODE,
    DEFAULT_BIG,
    EXPAND_DOWN,
    PRESENT,
    SEGMENT,
    WRITABLE,
    segment_parts,
)
from emulator.isa.x86.processor import INVALID_TSS, SS, STACK_FAULT, TR, Fault, Processor
from emulator.isa.x86.segments import mark_accessed, read_descriptor

MASK32 = 0xFFFF_FFFF
_WIDE_TSS = 0x800
"""Bit of a TSS's type that is set for a 32-bit one."""


@dataclass(slots=True)
class Stack:
    """A stack that is being pushed to. Nothing of the processor changes until `load`."""

    selector: int
    base: int
    limit: int
    attributes: int
    pointer: int
    """All 32 bits of ESP; a 16-bit stack uses the lower half."""
    user: bool
    """Accesses are made with user right."""
    error: int
    """Error code of the #SS that an access outside the segment raises."""

    @property
    def mask(self) -> int:
        """Which bits of ESP address the stack."""
        return MASK32 if self.attributes & DEFAULT_BIG else 0xFFFF

    def room(self, count: int, size: int) -> None:
        """Raise #SS where `count` words of `size` bytes do not fit."""
        for number in range(1, count + 1):
            self._check(self.pointer - number * size & self.mask, size)

    def push(self, cpu: Processor, words: Sequence[int], size: int) -> None:
        """Push words of `size` bytes, the first one first. Raises #SS or what the MMU raises; then ESP is as it was."""
        self.room(len(words), size)
        write = cpu.write_user if self.user else cpu.write
        mask = self.mask
        pointer = self.pointer
        for word in words:
            pointer = pointer & ~mask | pointer - size & mask
            write(self.base + (pointer & mask) & MASK32, size, word & (1 << 8 * size) - 1)
        self.pointer = pointer

    def peek(self, cpu: Processor, count: int, size: int, skip: int = 0) -> list[int]:
        """`count` words of `size` bytes from `skip` bytes above the top."""
        read = cpu.read_user if self.user else cpu.read
        mask = self.mask
        words = []
        for number in range(count):
            at = self.pointer + skip + number * size & mask
            self._check(at, size)
            words.append(read(self.base + at & MASK32, size))
        return words

    def _check(self, at: int, size: int) -> None:
        last = at + size - 1
        outside = last > self.limit
        if self.attributes & EXPAND_DOWN:
            outside = at <= self.limit or last > self.mask
        if outside or not self.attributes & PRESENT:  # a null stack segment is not present
            raise Fault(STACK_FAULT, self.error)

    def load(self, cpu: Processor) -> None:
        """Make it the processor's stack, the segment register included."""
        cpu.set_segment(SS, self.selector, self.base, self.limit, self.attributes)
        self.set_pointer(cpu)

    def set_pointer(self, cpu: Processor) -> None:
        """Take over the pointer alone; a 16-bit stack keeps the upper half of ESP."""
        mask = self.mask
        cpu.gpr[4] = cpu.gpr[4] & MASK32 & ~mask | self.pointer & mask


def current(cpu: Processor, user: bool, error: int = 0) -> Stack:
    """The stack in use."""
    selector, base, limit, attributes = cpu.segment(SS)
    return Stack(selector, base, limit, attributes, cpu.gpr[4] & MASK32, user, error)


def of_level(cpu: Processor, level: int, external: int = 0) -> Stack:
    """The stack that the TSS has for an entry to `level` (0..2). Raises #TS, #NP or #SS."""
    task, base, limit, attributes = cpu.segment(TR)
    wide = attributes & _WIDE_TSS
    offset, size = (4 + 8 * level, 4) if wide else (2 + 4 * level, 2)
    if offset + size + 1 > limit:
        raise Fault(INVALID_TSS, task & 0xFFFC | external)
    pointer = cpu.read(base + offset & MASK32, size)
    selector = cpu.read(base + offset + size & MASK32, 2)
    error = selector & 0xFFFC
    if not error:
        raise Fault(INVALID_TSS, external)
    parts = segment_parts(read_descriptor(cpu, selector, INVALID_TSS, external))
    found = parts[2]
    if selector & 3 != level or found >> 13 & 3 != level or found & (SEGMENT | CODE | WRITABLE) != SEGMENT | WRITABLE:
        raise Fault(INVALID_TSS, error | external)
    if not found & PRESENT:
        raise Fault(STACK_FAULT, error | external)
    if not found & ACCESSED:
        found = mark_accessed(cpu, selector, found)
    return Stack(selector, parts[0], parts[1], found, pointer, level == 3, error | external)
