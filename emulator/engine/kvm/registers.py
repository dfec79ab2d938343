"""The registers of a KVM processor, as a caller sees them while no guest code runs.

Room: `emulator/engine/kvm`. General registers, RIP and RFLAGS are taken from and put into KVM's shared page by the
engine; segments are kept there. Descriptor tables, task register, system-call registers and control registers are what
the caller wrote: the real ones are the engine's own, and user code cannot look at them where UMIP is obeyed.
"""

import fcntl
import mmap
import struct
from collections.abc import Callable
from functools import lru_cache

from emulator.engine.kvm import api
from emulator.isa.x86 import registers as r

_PRESENT = 1 << 15
_DB, _LONG, _GRANULAR, _AVAILABLE = 1 << 22, 1 << 21, 1 << 23, 1 << 20
_CS, _SS = r.CS, r.SS
_DPL3 = 3 << 13
_TF = r.FLAG_TF

Words = tuple[int, int, int]


@lru_cache(1024)
def segment_words(selector: int, base: int, limit: int, attributes: int) -> Words:
    """A segment register as `struct kvm_segment`, in three 64-bit words."""
    present = attributes >> 15 & 1
    kind = attributes >> 8 & 15
    rest = (attributes >> 13 & 3) | (attributes >> 22 & 1) << 8 | (attributes >> 12 & 1) << 16
    rest |= (attributes >> 21 & 1) << 24 | (attributes >> 23 & 1) << 32 | (attributes >> 20 & 1) << 40
    return base, limit | selector << 32 | kind << 48 | present << 56, rest | (1 - present) << 48


@lru_cache(1024)
def segment_of(words: Words) -> tuple[int, int, int, int]:
    """Selector, base, limit and attributes of three words of `struct kvm_segment`."""
    base, middle, rest = words
    attributes = (middle >> 48 & 15) << 8 | (rest >> 16 & 1) << 12 | (rest & 3) << 13 | (middle >> 56 & 1) << 15
    attributes |= (rest >> 40 & 1) << 20 | (rest >> 24 & 1) << 21 | (rest >> 8 & 1) << 22 | (rest >> 32 & 1) << 23
    return middle >> 32 & 0xFFFF, base, middle & 0xFFFF_FFFF, attributes


class KvmRegisters:
    """The register view of one engine (`emulator.engine.x86.X86Registers`)."""

    __slots__ = (
        *("_control", "_cpu", "_msrs", "_segments", "_tables", "_words"),
        *("code", "code_selector", "cr2", "gpr", "interrupt_shadow", "privilege", "reloaded", "rflags", "rip"),
        *("root", "select", "stack", "stack_selector"),
    )

    def __init__(self, cpu: int, run: memoryview) -> None:
        self._cpu = cpu
        self._words = run.cast("Q")
        self.gpr = memoryview(mmap.mmap(-1, mmap.PAGESIZE))[:128].cast("Q")
        self.rip = 0
        self.rflags = r.FLAG_FIXED
        self.cr2 = 0
        self.privilege = 0
        self.interrupt_shadow = False
        self.root = 0
        """CR3."""
        self.reloaded = False
        """CS was found to be another than it was entered with."""
        self._control = {0: 0, 4: 0}
        self._msrs = dict.fromkeys(
            (api.MSR_EFER, api.MSR_STAR, api.MSR_LSTAR, api.MSR_CSTAR, api.MSR_FMASK, api.MSR_KERNEL_GS_BASE), 0
        )
        self._tables = [(0, 0), (0, 0)]
        self._segments: dict[int, tuple[int, int, int, int]] = dict.fromkeys((_CS, _SS, r.LDTR, r.TR), (0, 0, 0, 0))
        """Segments that the real processor has otherwise, as they were loaded."""
        self.code: Words = (0, 0, 0)
        """The CS of level 3 with which user code is entered."""
        self.stack: Words = (0, 0, 0)
        self.code_selector = self.stack_selector = 0
        self.select: Callable[[int, int], tuple[int, int, int, int]] = lambda _index, selector: (selector, 0, 0, 0)
        """Gives the segment for a selector that the guest loaded by itself."""

    def advance(self, length: int) -> None:
        """Move RIP over an instruction of `length` bytes."""
        self.rip = self.rip + length & 0xFFFF_FFFF_FFFF_FFFF

    @property
    def trap_flag(self) -> bool:
        """RFLAGS.TF alone."""
        return self.rflags & _TF != 0

    def control(self, number: int) -> int:
        """CR0, CR2, CR3 or CR4 as they were set."""
        if number in (2, 3):
            return self.cr2 if number == 2 else self.root
        return self._control[number]

    def set_control(self, number: int, value: int) -> None:
        """Remember CR0 or CR4."""
        self._control[number] = value

    def debug(self, number: int) -> int:
        """DR0..DR7 as the CPU has it."""
        raw = bytearray(128)
        fcntl.ioctl(self._cpu, api.GET_DEBUGREGS, raw)
        values = struct.unpack_from("<6Q", raw)
        return int(values[number] if number < 4 else values[4 if number in (4, 6) else 5])

    def set_debug_status(self, value: int) -> None:
        """Write DR6."""
        raw = bytearray(128)
        fcntl.ioctl(self._cpu, api.GET_DEBUGREGS, raw)
        struct.pack_into("<Q", raw, 32, value)
        fcntl.ioctl(self._cpu, api.SET_DEBUGREGS, raw)

    def msr(self, number: int) -> int:
        """EFER, STAR, LSTAR, CSTAR, FMASK or KERNEL_GS_BASE as it was written."""
        return self._msrs[number]

    def set_msr(self, number: int, value: int) -> None:
        """Remember one of them."""
        self._msrs[number] = value

    def segment(self, index: int) -> tuple[int, int, int, int]:
        """Selector, base, limit and attributes of ES CS SS DS FS GS LDTR TR (0..7)."""
        kept = self._segments.get(index)
        if kept is not None:
            return kept
        at = api.SEGMENT_WORDS[index]
        words = self._words
        return segment_of((words[at], words[at + 1], words[at + 2]))

    def selector(self, index: int) -> int:
        """The visible part of a segment register."""
        kept = self._segments.get(index)
        return kept[0] if kept is not None else self._words[api.SEGMENT_WORDS[index] + 1] >> 32 & 0xFFFF

    def set_segment(self, index: int, selector: int, base: int, limit: int, attributes: int) -> None:
        """Load a segment register with its hidden part; CPL stays as it is."""
        if index in self._segments:
            self._segments[index] = (selector, base, limit, attributes)
            if index == _CS:
                self.code = segment_words(selector | 3, base, limit, attributes | _DPL3)
                self.code_selector = selector | 3
            elif index == _SS:
                self.stack = segment_words(selector | 3, base, limit, attributes | _DPL3)
                self.stack_selector = selector | 3
            return
        at = api.SEGMENT_WORDS[index]
        words = self._words
        words[at], words[at + 1], words[at + 2] = segment_words(selector, base, limit, attributes)

    def segment_base(self, index: int) -> int:
        """The base of a segment register."""
        kept = self._segments.get(index)
        return kept[1] if kept is not None else self._words[api.SEGMENT_WORDS[index]]

    def set_segment_base(self, index: int, base: int) -> None:
        """Change only the base of FS or GS."""
        self._words[api.SEGMENT_WORDS[index]] = base

    def table(self, which: int) -> tuple[int, int]:
        """Base and limit of GDTR (0) or IDTR (1), as they were set."""
        return self._tables[which]

    def set_table(self, which: int, base: int, limit: int) -> None:
        """Set GDTR (0) or IDTR (1)."""
        self._tables[which] = (base, limit)

    def loaded(self, index: int, selector: int) -> None:
        """Guest code itself loaded CS or SS."""
        self.reloaded |= index == _CS
        self.set_segment(index, *self.select(index, selector))
