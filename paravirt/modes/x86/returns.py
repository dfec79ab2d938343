"""IRETQ from the kernel to 64-bit user code, or the kernel, as nearly every one is: in one piece, where exits are dear.

Room: `paravirt/modes/x86`. What IRETQ means is `emulator.isa.x86.transfer`'s; it teaches this which selectors lead to
user code, and with which descriptors. Any other frame, descriptor, flag or segment is left to it.
"""

from typing import Final

from emulator.isa.x86 import registers as r
from emulator.isa.x86.descriptors import LONG
from emulator.isa.x86.processor import Fault
from paravirt.modes.x86.vcpu import X86VirtualCpu

_FRAME: Final = 40
"""Bytes that IRETQ pops."""
_HOLE: Final = 0x8000_0000_0000
_USUAL: Final = r.FLAGS_STATUS | r.FLAG_DF | r.FLAG_IF | r.FLAG_RF | r.FLAG_AC | r.FLAG_ID | r.FLAG_FIXED
_MOST: Final = 16
"""Pairs of selectors that are remembered."""
Parts = tuple[int, int, int]
Known = tuple[int, int, Parts, Parts]
"""Of two selectors: the descriptors, and base, limit and attributes of each."""


class QuickReturns:
    """Returns of one virtual CPU."""

    def __init__(self, vcpu: X86VirtualCpu) -> None:
        self._vcpu = vcpu
        self._known: dict[tuple[int, int], Known] = {}
        """By CS and SS of a frame."""

    def learn(self) -> None:
        """An IRETQ has led to level 3 or 0."""
        vcpu = self._vcpu
        (code, *code_parts), (stack, *stack_parts) = vcpu.segment(r.CS), vcpu.segment(r.SS)
        if code & 4 or stack & 4 or not code_parts[2] & LONG or code & 3 != vcpu.level:
            return
        if not stack & 0xFFFC and (vcpu.level or stack):
            return
        if len(self._known) == _MOST:
            self._known.clear()
        (one, two, three), (four, five, six) = code_parts, stack_parts
        self._known[code, stack] = (*self._descriptors(code, stack), (one, two, three), (four, five, six))

    def _descriptors(self, code: int, stack: int) -> tuple[int, int]:
        vcpu, code, stack = self._vcpu, code & ~7, stack & ~7
        base = vcpu.gdt_base
        if code < stack and base & 7 == 0 and (base & 0xFFF) + stack < 4096:  # as a rule they are neighbours
            words = vcpu.words_at(base + code, (stack - code >> 3) + 1)
            if words is not None:
                return words[0], words[-1]
        return vcpu.read(base + code, 8), vcpu.read(base + stack, 8)

    def done(self) -> bool:
        """Do the IRETQ that the kernel is at, or nothing."""
        vcpu = self._vcpu
        frame = None if vcpu.level or not vcpu.segment(r.CS)[3] & LONG else self._frame()
        if frame is None:
            return False
        (rip, code, flags, rsp, stack), known = frame
        for index, selector, parts in ((r.CS, code, known[2]), (r.SS, stack, known[3])):
            if code & 3 or vcpu.segment(index) != (selector, *parts):
                vcpu.set_segment(index, selector, *parts)
        vcpu.gpr[4], vcpu.rip, vcpu.level = rsp, rip, code & 3
        vcpu.rflags = flags | r.FLAG_FIXED
        return True

    def again(self) -> bool:
        """The same, or nothing, where user code came to its kernel without an exit and the virtual CPU is still at user
        code: what IRETQ loads into CS and SS must be there."""
        vcpu, frame = self._vcpu, self._frame()
        if frame is None:
            return False
        (rip, code, flags, rsp, stack), known = frame
        if not flags & r.FLAG_IF or not code & 3:
            return False
        if vcpu.segment(r.CS) != (code, *known[2]) or vcpu.segment(r.SS) != (stack, *known[3]):
            return False
        vcpu.gpr[4], vcpu.rip = rsp, rip
        vcpu.rflags = flags | r.FLAG_FIXED
        return True

    def _frame(self) -> tuple[list[int], Known] | None:
        """What IRETQ finds on the kernel's stack, and what is known of its selectors; None for all that is unusual."""
        vcpu = self._vcpu
        at, selector = vcpu.gpr[4], vcpu.registers.selector  # in the data segments the real one is the guest's
        if at & 7 or at & 0xFFF > 4096 - _FRAME or vcpu.registers.rflags & r.FLAG_NT:
            return None
        try:
            frame = vcpu.words_at(at, _FRAME >> 3)
            if frame is None:
                return None
            rip, code, flags, _, stack = frame
            known = self._known.get((code, stack))
            if known is None or flags & ~_USUAL or (rip >> 47 if code & 3 else rip + _HOLE >> 48 & 0xFFFF):
                return None
            if (code | 7 if code > stack else stack | 7) > vcpu.gdt_limit:
                return None
            if code & 3 and (selector(r.DS) or selector(r.ES) or selector(r.FS) or selector(r.GS)):
                return None
            return (frame, known) if self._descriptors(code, stack) == known[:2] else None
        except Fault:
            return None
