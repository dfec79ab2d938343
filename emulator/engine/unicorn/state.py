"""The CPU state of Unicorn's x86, read and written in place.

Room: `emulator/engine/unicorn`. The public interface cannot change the privilege level or a
segment's hidden part, does not show the error code, and costs microseconds a register. This module
finds the CPU state in memory, confirms every offset it uses by experiment, and refuses to go on
when one cannot be confirmed. The offsets are those of the 2.1.4 wheel (`CPUX86State` of QEMU 5.0).
"""

import ctypes
import struct
from functools import partial
from typing import Any

from emulator.engine.unicorn import library as lib
from emulator.engine.unicorn.state_search import find_pattern, read_memory

# Offsets into the CPU state, in bytes.
_EFLAGS = 0x88
_CC_SRC = 0x98
_CC_OP = 0xA8
_HFLAGS = 0xB0
_SEGMENTS = 0xB8
_GDT = 0x178
_IDT = 0x190
_CR = 0x1A8
_ERROR_CODE = 0x1508  # 32 bits; behind it 32 that say whether the event is a software interrupt
_NEXT_RIP = 0x1510
_DR = 0x1518
_PKRU = 0x14B8
_OLD_EXCEPTION = 0x1578
_SIZE = 0x1580

_MSRS = {
    0xC000_0080: 0x250,
    0xC000_0081: 0x12D8,
    0xC000_0082: 0x12E8,
    0xC000_0083: 0x12F0,
    0xC000_0084: 0x12F8,
    0xC000_0102: 0x1300,
}

_EFER_WORD = _MSRS[0xC000_0080] // 8
_LMA = 1 << 10
W_RIP = 0x80 // 8
W_CR2 = _CR // 8 + 2
W_ROOT = _CR // 8 + 3
_W_EFLAGS = _EFLAGS // 8
_W_CC_SRC = _CC_SRC // 8
_W_CC_OP = _CC_OP // 8
_W_CR = _CR // 8
_H_FLAGS = _HFLAGS // 4
W_EVENT = _ERROR_CODE // 8
"""Error code in the lower half, and in the upper whether the event is a software interrupt: read at once."""
W_NEXT_RIP = _NEXT_RIP // 8
I_OLD = _OLD_EXCEPTION // 4

_ARITHMETIC = 0x8D5
_DIRECTION = 0x400
_CC_OP_EFLAGS = 1

# Bits of hflags, QEMU's summary of the mode.
_H_SHADOW = 1 << 3
_H_CS32 = 1 << 4
_H_SS32 = 1 << 5
_H_ADDSEG = 1 << 6
_H_LMA = 1 << 14
_H_CS64 = 1 << 15

_PATTERN = 0x5E77_1A90_0000_0001
_CR4_PKE = 1 << 22
_CS, _SS = 1, 2
_L_BIT = 1 << 21
_ATTRIBUTES = 0xF0_FF00
"""Unicorn keeps a descriptor's whole second word."""
_DB_BIT = 1 << 22


def find_state(library: Any, handle: int) -> int:
    """Host address of the CPU state behind an open engine.

    Writes a pattern into the general registers through the public interface and looks for it in
    the objects the engine's own structure points to.
    """
    values = [_PATTERN + number * 0x0101_0307 for number in range(16)]
    for register, value in zip(lib.GENERAL, values, strict=True):
        library.uc_reg_write(handle, register, ctypes.byref(ctypes.c_uint64(value)))
    pattern = struct.pack("<16Q", *values)
    return find_pattern(handle, pattern, partial(_lives, library, handle))


def _lives(library: Any, handle: int, descriptor: int, address: int) -> bool:
    """Whether a register written through the public interface changes the word at `address`: no stale copy."""
    probe = 0x5E77_1A90_FFFF_0000
    library.uc_reg_write(handle, lib.GENERAL[0], ctypes.byref(ctypes.c_uint64(probe)))
    seen = read_memory(descriptor, address, 8)
    library.uc_reg_write(handle, lib.GENERAL[0], ctypes.byref(ctypes.c_uint64(_PATTERN)))
    return seen == struct.pack("<Q", probe)


class UnicornRegisters:
    """The register view of one engine (`emulator.engine.x86.X86Registers`)."""

    __slots__ = ("_buffer", "_eflags", "_handle", "_read", "_reference", "gpr", "halves", "signed", "words")

    def __init__(self, library: Any, handle: int, address: int) -> None:
        self._buffer = (ctypes.c_char * _SIZE).from_address(address)
        raw = memoryview(self._buffer).cast("B")
        self.words = raw.cast("Q")
        self.halves = raw.cast("I")
        self.signed = raw.cast("i")
        self.gpr = self.words[0:16]
        self._handle = handle
        self._read = library.uc_reg_read
        self._eflags = ctypes.c_uint64(0)
        self._reference = ctypes.byref(self._eflags)

    @property
    def rip(self) -> int:
        """The instruction pointer, 64 bits."""
        return self.words[W_RIP]

    @rip.setter
    def rip(self, value: int) -> None:
        self.words[W_RIP] = value

    def advance(self, length: int) -> None:
        """Move RIP over an instruction of `length` bytes."""
        words = self.words
        words[W_RIP] = words[W_RIP] + length & 0xFFFF_FFFF_FFFF_FFFF

    @property
    def trap_flag(self) -> bool:
        """RFLAGS.TF, which is never computed."""
        return self.words[_W_EFLAGS] & 0x100 != 0

    @property
    def rflags(self) -> int:
        """RFLAGS as the CPU has it. The arithmetic flags are kept lazily; the engine computes them."""
        words = self.words
        if words[_W_CC_OP] & 0xFFFF_FFFF == _CC_OP_EFLAGS:
            direction = _DIRECTION if words[_W_CC_OP] >> 63 else 0
            return words[_W_EFLAGS] & ~(_ARITHMETIC | _DIRECTION) | (words[_W_CC_SRC] & _ARITHMETIC) | direction
        self._eflags.value = 0
        self._read(self._handle, lib.REG_EFLAGS, self._reference)
        return int(self._eflags.value)

    @rflags.setter
    def rflags(self, value: int) -> None:
        words = self.words
        words[_W_EFLAGS] = value & 0x3F_FFFF & ~(_ARITHMETIC | _DIRECTION) | 2
        words[_W_CC_SRC] = value & _ARITHMETIC
        words[_W_CC_OP] = _CC_OP_EFLAGS | (0xFFFF_FFFF_0000_0000 if value & _DIRECTION else 0x1_0000_0000)

    def join_flags(self) -> None:
        """Put the arithmetic flags and DF, kept apart while code runs, into the word that a start takes them from."""
        self.words[_W_EFLAGS] = self.rflags

    @property
    def cr2(self) -> int:
        """The page-fault address register."""
        return self.words[_W_CR + 2]

    @cr2.setter
    def cr2(self, value: int) -> None:
        self.words[_W_CR + 2] = value

    def control(self, number: int) -> int:
        """CR0, CR2, CR3 or CR4 as the CPU has it."""
        return self.words[_W_CR + number]

    def poke_root(self, value: int) -> None:
        """Change CR3 without telling the TLB: the engine flushes."""
        self.words[_W_CR + 3] = value

    def protect_keys(self, rights: int, enabled: bool = True) -> None:
        """Enable protection keys with these access rights (PKRU), though CPUID does not offer them: the walker only
        looks at CR4.PKE. PKRU is not to be had through the public interface."""
        control = self.words[_W_CR + 4]
        self.words[_W_CR + 4] = control | _CR4_PKE if enabled else control & ~_CR4_PKE
        self.halves[_PKRU // 4] = rights

    def debug(self, number: int) -> int:
        """DR0..DR7 as the CPU has it."""
        return self.words[_DR // 8 + number]

    def set_debug(self, number: int, value: int) -> None:
        """Change a debug register (does not arm breakpoints)."""
        self.words[_DR // 8 + number] = value

    def msr(self, number: int) -> int:
        """One of the MSRs that the engine keeps in its state: EFER, STAR, LSTAR, CSTAR, FMASK, KERNEL_GS_BASE."""
        return self.words[_MSRS[number] // 8]

    @property
    def privilege(self) -> int:
        """The real current privilege level, 0..3."""
        return self.halves[_H_FLAGS] & 3

    @privilege.setter
    def privilege(self, level: int) -> None:
        self.halves[_H_FLAGS] = self.halves[_H_FLAGS] & ~3 | level

    @property
    def interrupt_shadow(self) -> bool:
        """Whether the next instruction still runs before an interrupt may come, after STI or a load of SS."""
        return self.halves[_H_FLAGS] & _H_SHADOW != 0

    @interrupt_shadow.setter
    def interrupt_shadow(self, value: bool) -> None:
        mode = self.halves[_H_FLAGS]
        self.halves[_H_FLAGS] = mode | _H_SHADOW if value else mode & ~_H_SHADOW

    @property
    def mode(self) -> int:
        """The summary of the execution mode that selects translated code (hflags)."""
        return self.halves[_H_FLAGS]

    @mode.setter
    def mode(self, value: int) -> None:
        self.halves[_H_FLAGS] = value

    @property
    def long_mode(self) -> bool:
        """Whether long mode is active (EFER.LMA): 64-bit and compatibility mode, with four-level tables."""
        return self.halves[_H_FLAGS] & _H_LMA != 0

    @long_mode.setter
    def long_mode(self, active: bool) -> None:
        efer, mode = self.words[_EFER_WORD], self.halves[_H_FLAGS]
        self.words[_EFER_WORD] = efer | _LMA if active else efer & ~_LMA
        self.halves[_H_FLAGS] = mode | _H_LMA if active else mode & ~(_H_LMA | _H_CS64)
        self._summarise()

    @property
    def in_64_bit_mode(self) -> bool:
        """Whether the code segment is a 64-bit one."""
        return self.halves[_H_FLAGS] & _H_CS64 != 0

    def segment(self, index: int) -> tuple[int, int, int, int]:
        """Selector, base, limit and attributes of ES CS SS DS FS GS LDTR TR (0..7)."""
        at = (_SEGMENTS + index * 24) // 4
        halves = self.halves
        return halves[at], self.words[at // 2 + 1], halves[at + 4], halves[at + 5] & _ATTRIBUTES

    def set_segment(self, index: int, selector: int, base: int, limit: int, attributes: int) -> None:
        """Load a segment register with its hidden part; CPL stays as it is."""
        at = (_SEGMENTS + index * 24) // 4
        halves = self.halves
        halves[at] = selector
        self.words[at // 2 + 1] = base
        halves[at + 4] = limit
        halves[at + 5] = attributes
        if index < 4:
            self._summarise()

    def _summarise(self) -> None:
        """Recompute the mode bits that depend on CS, SS, DS and ES."""
        halves = self.halves
        mode = halves[_H_FLAGS] & ~(_H_CS32 | _H_SS32 | _H_ADDSEG | _H_CS64)
        code = halves[_SEGMENTS // 4 + 6 * _CS + 5]
        if mode & _H_LMA and code & _L_BIT:
            mode |= _H_CS32 | _H_SS32 | _H_CS64
        else:
            if code & _DB_BIT:
                mode |= _H_CS32
            if halves[_SEGMENTS // 4 + 6 * _SS + 5] & _DB_BIT:
                mode |= _H_SS32
            words = self.words
            first = _SEGMENTS // 8
            if not code & _DB_BIT or words[first + 1] | words[first + 7] | words[first + 10]:
                mode |= _H_ADDSEG
        halves[_H_FLAGS] = mode

    def segment_base(self, index: int) -> int:
        """The base of a segment register."""
        return self.words[_SEGMENTS // 8 + index * 3 + 1]

    def set_segment_base(self, index: int, base: int) -> None:
        """Change only the base of FS or GS."""
        self.words[_SEGMENTS // 8 + index * 3 + 1] = base

    def selector(self, index: int) -> int:
        """The visible part of a segment register."""
        return self.halves[_SEGMENTS // 4 + index * 6]

    def table(self, which: int) -> tuple[int, int]:
        """Base and limit of GDTR (0) or IDTR (1)."""
        at = (_GDT, _IDT)[which]
        return self.words[at // 8 + 1], self.halves[at // 4 + 4]

    def set_table(self, which: int, base: int, limit: int) -> None:
        """Load GDTR (0) or IDTR (1)."""
        at = (_GDT, _IDT)[which]
        self.words[at // 8 + 1] = base
        self.halves[at // 4 + 4] = limit

    @property
    def next_rip(self) -> int:
        """For a software interrupt: the address behind the instruction."""
        return self.words[W_NEXT_RIP]

    def forget_exception(self) -> None:
        """Unicorn never resets `old_exception`, so that a second #GP would become #DF
        (unicorn-engine/unicorn issue 1883)."""
        self.signed[I_OLD] = -1
