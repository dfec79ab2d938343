"""IRETQ from the kernel to 64-bit user code as nearly every one is: looked at in one piece, where exits are dear.

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
_USUAL: Final = r.FLAGS_STATUS | r.FLAG_DF | r.FLAG_IF | r.FLAG_RF | r.FLAG_AC | r.FLAG_ID | r.FLAG_FIXED
_MOST: Final = 16
"""Pairs of selectors that are remembered."""
Parts = tuple[int, int, int]


class QuickReturns:
    """Returns of one virtual CPU."""

    def __init__(self, vcpu: X86VirtualCpu) -> None:
        self._vcpu = vcpu
        self._known: dict[tuple[int, int], tuple[int, int, Parts, Parts]] = {}
        """By CS and SS of a frame: their descriptors, and base, limit and attributes of each."""

    def learn(self) -> None:
        """An IRETQ has led to level 3."""
        vcpu = self._vcpu
        (code, *code_parts), (stack, *stack_parts) = vcpu.segment(r.CS), vcpu.segment(r.SS)
        if code & 4 or stack & 4 or not code_parts[2] & LONG or not stack & 0xFFFC:
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
        gpr, segment, selector = vcpu.gpr, vcpu.segment, vcpu.registers.selector  # in these four it is the guest's
        stack = gpr[4]
        if vcpu.level or stack & 7 or stack & 0xFFF > 4096 - _FRAME or vcpu.registers.rflags & r.FLAG_NT:
            return False
        try:
            frame = vcpu.words_at(stack, _FRAME >> 3)
            if frame is None:
                return False
            rip, code, flags, rsp, stack = frame
            known = self._known.get((code, stack))
            if known is None or flags & ~_USUAL or rip >> 47 or not segment(r.CS)[3] & LONG:
                return False
            if (code | 7 if code > stack else stack | 7) > vcpu.gdt_limit:
                return False
            if selector(r.DS) or selector(r.ES) or selector(r.FS) or selector(r.GS):
                return False
            if self._descriptors(code, stack) != known[:2]:
                return False
        except Fault:
            return False
        vcpu.set_segment(r.CS, code, *known[2])
        vcpu.set_segment(r.SS, stack, *known[3])
        gpr[4], vcpu.rip, vcpu.level = rsp, rip, 3
        vcpu.rflags = flags | r.FLAG_FIXED
        return True
