"""Interrupts and exceptions of an x86-64 guest, delivered in one piece as nearly all can be, where exits are dear.

Room: `paravirt/modes/x86`. What a delivery is, is `emulator.isa.x86.delivery`'s. Of a gate and a code segment that are
as they were when they were looked at last, nothing need be looked at again; any other gate, stack or segment, and all
that cannot be delivered, is left to it.
"""

from typing import Final

from emulator.isa.x86 import registers as r
from emulator.isa.x86.delivery import FAULT_CLASS, HANDLER_FLAGS, WITH_ERROR
from emulator.isa.x86.descriptors import (
    ACCESSED,
    CODE,
    CONFORMING,
    DEFAULT_BIG,
    FLAT_DATA,
    FLAT_LIMIT,
    LONG,
    PRESENT,
    SEGMENT,
    gate_parts,
    segment_parts,
)
from emulator.isa.x86.processor import Fault
from paravirt.modes.x86.vcpu import X86VirtualCpu

_PAGE_FAULT: Final = 14
_HOLE: Final = 0x8000_0000_0000
_ORDINARY: Final = SEGMENT | CODE | PRESENT | LONG | ACCESSED
_LEVEL: Final = 3 << 13
Known = tuple[list[int], int, int, int, tuple[int, int, int, int]]
"""Of a vector: the gate's words, the handler, the flags that it begins with; the descriptor of its code segment, and
that segment as it is loaded."""


class QuickDeliveries:
    """Deliveries to one virtual CPU."""

    def __init__(self, vcpu: X86VirtualCpu) -> None:
        self._vcpu = vcpu
        self._known: dict[int, Known] = {}

    def raised(self, fault: Fault) -> bool:
        """Deliver an exception as `raise_exception` does, or nothing but that CR2 is set."""
        vector, error = fault.vector, fault.error
        if vector == _PAGE_FAULT:
            self._vcpu.cr2 = fault.address
        if error is None and vector in WITH_ERROR:
            error = 0
        return self.done(vector, error, vector in FAULT_CLASS)

    def done(self, vector: int, error: int | None, resume: bool) -> bool:
        """Enter the handler of a vector as `deliver` does, or do nothing."""
        vcpu = self._vcpu
        try:
            known = self._look(vector)
            if known is None:
                return False
            size = 40 if error is None else 48
            bottom = (self._stack() & ~15) - size
            if bottom < 0 or bottom & 0xFFF > 4096 - size or bottom + _HOLE >> 48 & 0xFFFF:
                return False
            flags, code = vcpu.rflags, vcpu.segment(r.CS)
            frame = [vcpu.rip, code[0], flags | r.FLAG_RF if resume else flags, vcpu.gpr[4], vcpu.segment(r.SS)[0]]
            if error is not None:
                frame.insert(0, error)
            if not vcpu.put_words(bottom, frame):
                return False
        except Fault:
            return False
        _, target, kept, _, segment = known
        vcpu.rip, vcpu.gpr[4] = target, bottom
        if vcpu.level:
            vcpu.set_segment(r.SS, 0, 0, FLAT_LIMIT, FLAT_DATA)
        if code != segment:
            vcpu.set_segment(r.CS, *segment)
        vcpu.level = 0
        vcpu.rflags = flags & kept
        return True

    def _stack(self) -> int:
        """The stack that the handler begins on; negative where that is for `deliver` to find."""
        vcpu = self._vcpu
        if not vcpu.level:
            return vcpu.gpr[4]
        _, base, limit, _ = vcpu.segment(r.TR)
        if limit < 11 or base & 15 or base + _HOLE >> 48 & 0xFFFF:
            return -1
        return vcpu.read(base + 4, 8)

    def _look(self, vector: int) -> Known | None:
        """What is known of a vector; None where it is unusual, or its segment is another now."""
        vcpu = self._vcpu
        gate = vcpu.idt_base + 16 * vector
        if 16 * vector + 15 > vcpu.idt_limit or gate & 15 or gate + _HOLE >> 48 & 0xFFFF:
            return None
        words = vcpu.words_at(gate, 2)
        known = self._known.get(vector)
        if words is None:
            return None
        if known is None or known[0] != words:
            known = self._learn(words)
            if known is None:
                return None
            self._known[vector] = known
        if self._descriptor(known[4][0]) == known[3]:
            return known
        del self._known[vector]
        return None

    def _descriptor(self, selector: int) -> int:
        """What the guest's table has for a selector of level 0; 0 for nothing."""
        vcpu = self._vcpu
        at = vcpu.gdt_base + selector
        if selector | 7 > vcpu.gdt_limit or at & 7 or at + _HOLE >> 48 & 0xFFFF:
            return 0
        words = vcpu.words_at(at, 1)
        return words[0] if words is not None else 0

    def _learn(self, words: list[int]) -> Known | None:
        """What there is to know of a gate, if it is one to ordinary code of level 0, on the stack that there is."""
        low, high = words
        selector, target, stack, _ = gate_parts(low, high)
        selector &= 0xFFFC
        if low >> 41 & 0xF != 7 or not low >> 47 & 1 or stack or target + _HOLE >> 48 & 0xFFFF or selector & 4:
            return None
        descriptor = self._descriptor(selector) if selector else 0
        base, limit, attributes = segment_parts(descriptor)
        if attributes & (_ORDINARY | DEFAULT_BIG | CONFORMING | _LEVEL) != _ORDINARY:
            return None
        return words, target, HANDLER_FLAGS[low >> 40 & 1], descriptor, (selector, base, limit, attributes)
