"""The CPU state of Unicorn's MIPS32, read and written in place.

Room: `emulator/engine/unicorn`. The public interface knows little of coprocessor 0, nothing of branch delays, and
costs microseconds a register. Offsets are those of the 2.1.4 wheel (`CPUMIPSState` of QEMU 5.0), the same in both
byte orders; `mips_confirm.py` holds each that is relied upon against an experiment before the engine opens.
"""

import ctypes
import os
import struct

from emulator.engine.unicorn.state_search import read_memory
from emulator.errors import EngineMissing

CPU_POINTER = 0x1B8
"""In Unicorn's own structure: the address of the CPU."""
STOP_INTERRUPT = 0xE0
"""There, too: a function that says which events go to the hooks of invalid instructions. NULL on MIPS."""
INVALID_ERROR = 0x590
"""There, too: the error with which the emulation will end, 32 bits."""
EXCEPTION_INDEX = 0x81A0
"""In the CPU: the exception under way."""
STATE = 0x8CF0
"""In the CPU: its registers."""

_PC, _HI, _LO, _USER_LOCAL = 0x80 // 4, 0x84 // 4, 0x94 // 4, 0xD4 // 4
_FPR, _FCSR = 0x228, 0x438 // 4
_ROUNDING, _FLUSH = 0x429, 0x42C
"""Bytes of the state of its arithmetic."""
_LINK, _LINKED = 0x61C // 4, 0x620 // 4
_ERROR_CODE, _HFLAGS, _TARGET, _CONDITION = 0x2B90 // 4, 0x2B94 // 4, 0x2B98 // 4, 0x2B9C // 4
_SIZE = 0x2BC0

MODE = 3
_CP0, _FPU, _F64, _COP1X, _ULR, _ERL = 0x10, 0x20, 0x40, 0x80, 0x200000, 0x1000_0000
BRANCH = 0x87_F800
"""Bits of hflags that say of which kind the branch under way is."""
_KIND, _UNCONDITIONAL, _CONDITIONAL = 0x3800, 0x800, 0x1000
_KINDS = frozenset({0, _UNCONDITIONAL, _CONDITIONAL, 0x1800, 0x2000})
_EVERY_KIND = _KIND | 0x80_0000
_ROUNDING_MODES = bytes((0, 3, 2, 1))
"""By the field of the control register: to nearest, to zero, up, down."""

CP0 = {
    "Index": 0x464,
    "EntryLo0": 0x490,
    "EntryLo1": 0x498,
    "Context": 0x4A4,
    "PageMask": 0x4AC,
    "SegCtl0": 0x4B8,
    "SegCtl1": 0x4BC,
    "SegCtl2": 0x4C0,
    "Wired": 0x4D0,
    "HWREna": 0x500,
    "BadVAddr": 0x504,
    "EntryHi": 0x530,
    "Compare": 0x538,
    "Status": 0x53C,
    "IntCtl": 0x540,
    "SRSCtl": 0x544,
    "Cause": 0x54C,
    "EPC": 0x550,
    "PRId": 0x554,
    "EBase": 0x558,
    "Config": 0x564,
    "Config1": 0x568,
    "Config2": 0x56C,
    "Config3": 0x570,
    "ErrorEPC": 0x6D4,
}
"""Offsets of registers of coprocessor 0."""


def find_cpu(handle: int, expected: list[int]) -> int:
    """Host address of the CPU behind an open engine whose general registers were set to `expected`."""
    descriptor = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        raw = read_memory(descriptor, handle + CPU_POINTER, 8).ljust(8, b"\0")
        cpu = int(struct.unpack("<Q", raw)[0])
        seen = read_memory(descriptor, cpu + STATE, 128) if 0x10000 <= cpu < 1 << 47 else b""
        slot = read_memory(descriptor, handle + STOP_INTERRUPT, 8)
    finally:
        os.close(descriptor)
    if seen != struct.pack("<32I", *expected) or slot != bytes(8):
        raise EngineMissing(
            "the unicorn engine keeps its MIPS state where retrap does not find it: install unicorn==2.1.4"
        )
    return cpu


class UnicornMipsRegisters:
    """The register view of one engine (`emulator.engine.mips.MipsRegisters`)."""

    __slots__ = ("_buffer", "_bytes", "_fpr", "gpr", "words")

    def __init__(self, address: int) -> None:
        self._buffer = (ctypes.c_char * _SIZE).from_address(address)
        raw = memoryview(self._buffer).cast("B")
        self._bytes = raw
        self.words = raw.cast("I")
        self.gpr = self.words[0:32]
        self._fpr = raw[_FPR : _FPR + 512].cast("Q")

    @property
    def pc(self) -> int:
        """Address of the next instruction."""
        return self.words[_PC]

    @pc.setter
    def pc(self, value: int) -> None:
        self.words[_PC] = value

    @property
    def hi(self) -> int:
        """The upper half of a product, or a remainder."""
        return self.words[_HI]

    @hi.setter
    def hi(self, value: int) -> None:
        self.words[_HI] = value

    @property
    def lo(self) -> int:
        """The lower half of a product, or a quotient."""
        return self.words[_LO]

    @lo.setter
    def lo(self, value: int) -> None:
        self.words[_LO] = value

    @property
    def user_local(self) -> int:
        """UserLocal."""
        return self.words[_USER_LOCAL]

    @user_local.setter
    def user_local(self, value: int) -> None:
        self.words[_USER_LOCAL] = value

    @property
    def in_delay_slot(self) -> bool:
        """Whether a branch is under way."""
        return self.words[_HFLAGS] & BRANCH != 0

    @property
    def restart_address(self) -> int:
        """`pc`, or the branch before it."""
        words = self.words
        return words[_PC] if not words[_HFLAGS] & BRANCH else words[_PC] - 4 & 0xFFFF_FFFF

    @property
    def branch(self) -> tuple[int, int, int]:
        """The branch under way: its kind (0 for none), where it goes, and whether, all as the engine has them."""
        words = self.words
        return words[_HFLAGS] & BRANCH, words[_TARGET], words[_CONDITION]

    @branch.setter
    def branch(self, value: tuple[int, int, int]) -> None:
        """Raises `ValueError` for a kind that is none."""
        kind, target, condition = value
        if kind & ~BRANCH or kind & _EVERY_KIND not in _KINDS:
            raise ValueError(f"there is no branch of the kind {kind:#x}")
        words = self.words
        words[_HFLAGS] = words[_HFLAGS] & ~BRANCH & 0xFFFF_FFFF | kind
        words[_TARGET], words[_CONDITION] = target, condition

    def behind(self) -> int:
        """The instruction after the one at `pc`."""
        words = self.words
        flags = words[_HFLAGS]
        if not flags & BRANCH or (flags & _KIND == _CONDITIONAL and not words[_CONDITION]):
            return words[_PC] + 4 & 0xFFFF_FFFF
        return words[_TARGET]

    def jump(self, address: int) -> None:
        """Go on at `address`, no branch under way."""
        words = self.words
        words[_PC] = address
        words[_HFLAGS] &= ~BRANCH & 0xFFFF_FFFF

    def advance(self) -> None:
        """Step over the instruction at `pc`."""
        words = self.words
        if words[_HFLAGS] & BRANCH:
            self.jump(self.behind())
        else:
            words[_PC] = words[_PC] + 4 & 0xFFFF_FFFF

    @property
    def mode(self) -> int:
        """The privilege mode; ERL counts as kernel."""
        flags = self.words[_HFLAGS]
        return 0 if flags & _ERL else flags & MODE

    @mode.setter
    def mode(self, value: int) -> None:
        flags = self.words[_HFLAGS] & ~(MODE | _CP0 | _ERL) & 0xFFFF_FFFF
        self.words[_HFLAGS] = flags | value | (0 if value else _CP0)

    def set_coprocessor(self, usable: bool, wide: bool) -> None:
        """Whether COP1 instructions run, and with 64-bit registers."""
        flags = self.words[_HFLAGS] & ~(_FPU | _F64 | _COP1X) & 0xFFFF_FFFF
        if usable:
            flags |= _FPU | _COP1X | (_F64 if wide else 0)
        self.words[_HFLAGS] = flags

    def set_user_local_readable(self, readable: bool) -> None:
        """Whether RDHWR $29 runs outside of kernel mode."""
        flags = self.words[_HFLAGS]
        self.words[_HFLAGS] = flags | _ULR if readable else flags & ~_ULR & 0xFFFF_FFFF

    @property
    def fpr(self) -> memoryview:
        """Register n is word 2n."""
        return self._fpr

    @property
    def fcsr(self) -> int:
        """Control and status of the coprocessor."""
        return self.words[_FCSR]

    @fcsr.setter
    def fcsr(self, value: int) -> None:
        self.words[_FCSR] = value

    def load_fcsr(self, value: int) -> None:
        """Write control and status, and let the arithmetic follow."""
        self.fcsr = value
        self._bytes[_ROUNDING], self._bytes[_FLUSH] = _ROUNDING_MODES[value & 3], value >> 24 & 1

    @property
    def monitor(self) -> tuple[int, int]:
        """The linked address, or an odd one, and the word that was there."""
        return self.words[_LINK], self.words[_LINKED]

    @monitor.setter
    def monitor(self, value: tuple[int, int]) -> None:
        self.words[_LINK], self.words[_LINKED] = value

    def break_link(self) -> None:
        """LLbit := 0: no address is the linked one."""
        self.words[_LINK] = 1

    @property
    def link(self) -> int:
        """The linked address, or an odd one."""
        return self.words[_LINK]

    def cp0(self, name: str) -> int:
        """A register of coprocessor 0."""
        return self.words[CP0[name] // 4]

    def set_cp0(self, name: str, value: int) -> None:
        """Write a register of coprocessor 0; Status tells its modes to the engine besides."""
        self.words[CP0[name] // 4] = value & 0xFFFF_FFFF
        if name == "Status":
            self._summarise(value)

    def _summarise(self, status: int) -> None:
        """What of Status selects translated code."""
        kernel = status & 6 or not status >> 3 & 3
        flags = self.words[_HFLAGS] & ~(MODE | _CP0 | _ERL | _FPU | _F64 | _COP1X) & 0xFFFF_FFFF
        flags |= _ERL if status & 4 else 0 if kernel else status >> 3 & 3
        if kernel or status >> 28 & 1:
            flags |= _CP0
        if status >> 29 & 1:
            flags |= _FPU | _COP1X | (_F64 if status >> 26 & 1 else 0)
        self.words[_HFLAGS] = flags

    @property
    def error_code(self) -> int:
        """Of an exception: the coprocessor that is not usable, or whether nothing matched."""
        return self.words[_ERROR_CODE]

    @property
    def address(self) -> int:
        """Where the registers lie in the host's memory."""
        return ctypes.addressof(self._buffer)

    @property
    def hflags_address(self) -> int:
        """Where the summary of modes lies, for machine code."""
        return ctypes.addressof(self._buffer) + _HFLAGS * 4
