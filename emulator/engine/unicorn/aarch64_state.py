"""The CPU state of Unicorn's AArch64, read and written in place.

Room: `emulator/engine/unicorn`. The public interface costs microseconds a register, hides the syndrome and the faulting
address of an exception, and does not follow a change of the exception level. The offsets are those of the 2.1.4 wheel
(`CPUARMState` of QEMU 5.0); `aarch64_confirm` confirms every one of them by experiment when an engine is opened.
"""

from __future__ import annotations

import ctypes
import os
import struct
from functools import partial
from typing import Any, Final

from unicorn import arm64_const

from emulator.engine.aarch64 import SP, USER_MAY
from emulator.engine.unicorn.floating_access import CHOICE, OWN
from emulator.engine.unicorn.state_search import find_pattern, read_memory
from emulator.errors import EngineMissing
from emulator.isa.aarch64.encoding import fields, register
from emulator.isa.aarch64.registers import BY_NAME

# Offsets into the CPU state, in bytes.
GENERAL: Final = 0x40
_PC = 0x140
_PSTATE = 0x148  # EL, SPSel and what is not kept elsewhere; 32 bits
_MODE = 0x150  # QEMU's summary of the mode (hflags), 32 bits
_CARRY, _OVERFLOW, _NEGATIVE, _ZERO = 0x208, 0x20C, 0x210, 0x214
_DAIF = 0x230
_SYNDROME = 0xBD0
_FAULT_ADDRESS = 0xBD8
_VECTORS = 0xC10  # 256 bytes apart
_EXCLUSIVE = 0x2F00
_HCR, _SCR, _MDSCR = 0x3B8, 0x3C0, 0x7E8
_SIZE = 0x2F18

STATE_AT: Final = 0xA350
"""Offset of the state in QEMU's CPU object."""
_STATE_POINTER = 0x128
"""Offset in that object of a pointer to the state."""
SCR_EL3: Final = register(3, 6, 1, 1, 0)
HCR_EL2: Final = register(3, 4, 1, 1, 0)
_SECURE, _NON_SECURE = 0x430, 0x431
"""SCR_EL3.RW, so that EL1 is AArch64; without it translation is AArch32's. HVC and SMC stay undefined and trapping."""
_HCR_RW = 1 << 31
"""HCR_EL2.RW: the same for the other security state."""

IN_PLACE: Final[dict[str, int]] = {
    "SPSR_EL1": 0x168,
    "ELR_EL1": 0x240,
    "SP_EL0": 0x258,
    "SCTLR_EL1": 0x2A8,
    "CPACR_EL1": 0x2C0,
    "TTBR0_EL1": 0x308,
    "TTBR1_EL1": 0x328,
    "ESR_EL1": 0x3E0,
    "FAR_EL1": 0x420,
    "PAR_EL1": 0x450,
    "PMUSERENR_EL0": 0x488,
    "MAIR_EL1": 0x4A8,
    "PMCCNTR_EL0": 0x808,
    "PMEVCNTR0_EL0": 0x818,
    "PMEVCNTR1_EL0": 0x820,
    "PMEVCNTR2_EL0": 0x828,
    "PMEVCNTR3_EL0": 0x830,
    "VBAR_EL1": 0x4C8,
    "CONTEXTIDR_EL1": 0x4F8,
    "TPIDR_EL0": 0x510,
    "TPIDR_EL1": 0x518,
    "TPIDRRO_EL0": 0x548,
    "CNTKCTL_EL1": 0x558,
}
"""Offsets of the system registers that are read and written in place."""

W_PC: Final = _PC // 8
W_FAULT_ADDRESS: Final = _FAULT_ADDRESS // 8
H_SYNDROME: Final = _SYNDROME // 4
_BANKED_SP: Final = IN_PLACE["SP_EL0"]  # SP_EL1 follows
_W_SCTLR: Final = IN_PLACE["SCTLR_EL1"] // 8
_W_CPACR: Final = IN_PLACE["CPACR_EL1"] // 8
_W_CHOICE: Final = CHOICE // 8
_W_COUNTERS: Final = IN_PLACE["PMUSERENR_EL0"] // 8
_W_LOWER, _W_UPPER = IN_PLACE["TTBR0_EL1"] // 8, IN_PLACE["TTBR1_EL1"] // 8
_PATTERN = 0x5E77_1A90_0000_0001
_X: Final = tuple(getattr(arm64_const, f"UC_ARM64_REG_X{number}") for number in range(31))
_MASK = 0xFFFF_FFFF_FFFF_FFFF
_EL1H = 5
_ALL_MASKS = 0x3C0
_ILLEGAL = 1 << 20
_STEP = 1 << 21
"""PSTATE.SS."""
_DUMMY: Final = BY_NAME["TPIDR_EL1"].encoding


class SystemAccess(ctypes.Structure):
    """`uc_arm64_cp_reg` of unicorn/arm64.h."""

    _fields_ = (*((name, ctypes.c_uint32) for name in ("crn", "crm", "op0", "op1", "op2")), ("val", ctypes.c_uint64))


def access(register: int, value: int = 0) -> SystemAccess:
    """How Unicorn wants a system register named."""
    op0, op1, crn, crm, op2 = fields(register)
    return SystemAccess(crn, crm, op0, op1, op2, value)


def find_state(library: Any, handle: int) -> int:
    """Host address of the CPU state behind an open engine, found by a pattern in its registers."""
    values = [_PATTERN + number * 0x0101_0307 for number in range(31)]
    for general, value in zip(_X, values, strict=True):
        library.uc_reg_write(handle, general, ctypes.byref(ctypes.c_uint64(value)))
    pattern = struct.pack("<31Q", *values)
    return find_pattern(handle, pattern, partial(_lives, library, handle)) - GENERAL


def processor_of(state: int) -> int:
    """Host address of QEMU's CPU object, of which the state at an address is a part."""
    processor = state - STATE_AT
    descriptor = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        found = read_memory(descriptor, processor + _STATE_POINTER, 8)
    finally:
        os.close(descriptor)
    if found != struct.pack("<Q", state):
        raise EngineMissing("the unicorn engine's CPU is not where retrap looks for it: install unicorn==2.1.4")
    return processor


def _lives(library: Any, handle: int, descriptor: int, address: int) -> bool:
    """Whether a register written through the public interface changes the word at `address`: no stale copy."""
    probe = 0x5E77_1A90_FFFF_0000
    library.uc_reg_write(handle, _X[0], ctypes.byref(ctypes.c_uint64(probe)))
    seen = read_memory(descriptor, address, 8)
    library.uc_reg_write(handle, _X[0], ctypes.byref(ctypes.c_uint64(_PATTERN)))
    return seen == struct.pack("<Q", probe)


class UnicornAArch64Registers:
    """The register view of one engine (`emulator.engine.aarch64.AArch64Registers`)."""

    __slots__ = (
        "_asked", "_buffer", "_denied", "_handle", "_library", "_modes", "_step", "_world", "address", "gpr", "halves",
        "words",
    )  # fmt: skip

    def __init__(self, library: Any, handle: int, address: int) -> None:
        self.address = address
        """Host address of the state."""
        self._buffer = (ctypes.c_char * _SIZE).from_address(address)
        raw = memoryview(self._buffer).cast("B")
        self.words = raw.cast("Q")
        self.halves = raw.cast("I")
        self.gpr = self.words[GENERAL // 8 : GENERAL // 8 + 32]
        self._library = library
        self._handle = handle
        self._modes = [0, 0, 0, 0]
        """QEMU's summary of the mode for EL0 and EL1h, in both worlds."""
        self._step = 0
        """The bit of it by which one instruction is executed at a time."""
        self._denied = 0
        """The bit of it with which floating point traps."""
        self._asked: memoryview | None = None
        """The words that say whether it does, in the place of CPACR_EL1."""
        self._world = 0
        set_public = self.set_public
        set_public(HCR_EL2, _HCR_RW)
        set_public(SCR_EL3, _SECURE)

    # -- general registers ----------------------------------------------------------------------

    @property
    def pc(self) -> int:
        """The program counter."""
        return self.words[W_PC]

    @pc.setter
    def pc(self, value: int) -> None:
        self.words[W_PC] = value

    def advance(self) -> None:
        """Move PC over an instruction."""
        words = self.words
        words[W_PC] = words[W_PC] + 4 & _MASK

    @property
    def nzcv(self) -> int:
        """The condition flags at their place in PSTATE."""
        halves = self.halves
        negative = halves[_NEGATIVE // 4] & 0x8000_0000
        zero = 0 if halves[_ZERO // 4] else 0x4000_0000
        return negative | zero | halves[_CARRY // 4] << 29 | (halves[_OVERFLOW // 4] >> 31) << 28

    @nzcv.setter
    def nzcv(self, value: int) -> None:
        halves = self.halves
        halves[_NEGATIVE // 4] = value & 0x8000_0000
        halves[_ZERO // 4] = ~value & 0x4000_0000
        halves[_CARRY // 4] = value >> 29 & 1
        halves[_OVERFLOW // 4] = value << 3 & 0x8000_0000

    @property
    def daif(self) -> int:
        """The real interrupt masks at their place in PSTATE."""
        return self.words[_DAIF // 8] & 0x3C0

    @daif.setter
    def daif(self, value: int) -> None:
        self.words[_DAIF // 8] = value & 0x3C0

    @property
    def pstate(self) -> int:
        """PSTATE as SPSR_ELx would have it."""
        return self.nzcv | self.daif | self.halves[_PSTATE // 4]

    @property
    def level(self) -> int:
        """The real exception level."""
        return self.halves[_PSTATE // 4] >> 2 & 3

    @level.setter
    def level(self, value: int) -> None:
        halves = self.halves
        halves[_PSTATE // 4] = halves[_PSTATE // 4] & ~0xF | (_EL1H if value else 0)
        mode = self._modes[self._world << 1 | value]
        halves[_MODE // 4] = mode if self._may_float() else mode | self._denied

    @property
    def world(self) -> int:
        """Which of the two worlds the code runs in: 0 secure, 1 non-secure. Each has a TLB of its own."""
        return self._world

    @world.setter
    def world(self, value: int) -> None:
        self._world = value
        self.words[_SCR // 8] = _NON_SECURE if value else _SECURE
        self.level = self.level

    def _may_float(self) -> bool:
        """Whether floating point runs now: what the engine asks as well whenever it sums the mode up."""
        asked = self._asked
        if asked is None:
            rights = self.words[_W_CPACR] >> 20 & 3
            return rights == 3 or (rights == 1 and self.level != 0)
        rights = asked[0] >> 20 & 3
        return rights == 3 or (rights == 1 and self._world == 0)

    def ask_floating_point(self, asked: memoryview | None) -> None:
        """Have a word say whether floating point runs; None: CPACR_EL1."""
        self._asked = asked
        address = OWN if asked is None else ctypes.addressof(ctypes.c_char.from_buffer(asked)) | 1
        self.words[_W_CHOICE] = address
        self.floating_point_changed()

    def floating_point_changed(self) -> None:
        """Sum the mode up anew, as far as floating point goes."""
        mode = self.halves[_MODE // 4] & ~self._denied
        self.halves[_MODE // 4] = mode if self._may_float() else mode | self._denied

    @property
    def stepping(self) -> bool:
        """Whether one instruction runs at EL0, and then raises a software step exception."""
        return self.halves[_PSTATE // 4] & _STEP != 0

    @stepping.setter
    def stepping(self, value: bool) -> None:
        halves = self.halves
        self.level = self.level
        if value:
            halves[_PSTATE // 4] |= _STEP
            halves[_MODE // 4] |= self._step
        else:
            halves[_PSTATE // 4] &= ~_STEP
        self.words[_MDSCR // 8] = 1 if value else 0

    @property
    def thread(self) -> int:
        """TPIDR_EL0."""
        return self.words[IN_PLACE["TPIDR_EL0"] // 8]

    @thread.setter
    def thread(self, value: int) -> None:
        self.words[IN_PLACE["TPIDR_EL0"] // 8] = value

    @property
    def thread_read_only(self) -> int:
        """TPIDRRO_EL0."""
        return self.words[IN_PLACE["TPIDRRO_EL0"] // 8]

    @thread_read_only.setter
    def thread_read_only(self, value: int) -> None:
        self.words[IN_PLACE["TPIDRRO_EL0"] // 8] = value

    def enter_level_1(self) -> None:
        """Go to EL1 with its own stack pointer and all interrupts masked, as an exception does."""
        words, halves = self.words, self.halves
        pstate = halves[_PSTATE // 4]
        if pstate & 0xD != _EL1H:
            words[_BANKED_SP // 8] = self.gpr[SP]
            self.gpr[SP] = words[_BANKED_SP // 8 + 1]
        self.daif = _ALL_MASKS
        halves[_PSTATE // 4] = pstate & ~(0xF | _STEP | _ILLEGAL) | _EL1H
        self.set_public(_DUMMY, words[IN_PLACE["TPIDR_EL1"] // 8])  # by which the summary of the mode is made anew

    # -- system registers -----------------------------------------------------------------------

    def system(self, register: int) -> int:
        """A real system register by its 16-bit name. Through the public interface where it is not known in place."""
        offset = _OFFSETS.get(register)
        if offset is not None:
            return self.words[offset >> 3]
        return self.public(register)

    def set_system(self, register: int, value: int) -> None:
        """Load a real system register."""
        offset = _OFFSETS.get(register)
        if offset is not None and register not in _CONTROLS:
            self.words[offset >> 3] = value
        else:
            self.set_public(register, value)

    def public(self, register: int) -> int:
        """A real system register through Unicorn's own interface."""
        one = access(register)
        self._library.uc_reg_read(self._handle, arm64_const.UC_ARM64_REG_CP_REG, ctypes.byref(one))
        return int(one.val)

    def set_public(self, register: int, value: int) -> None:
        """Load a real system register through Unicorn's own interface, which follows with all that depends on it."""
        one = access(register, value)
        self._library.uc_reg_write(self._handle, arm64_const.UC_ARM64_REG_CP_REG, ctypes.byref(one))

    def poke_roots(self, lower: int, upper: int) -> None:
        """Change TTBR0_EL1 and TTBR1_EL1 without telling the TLB: the engine flushes."""
        self.words[_W_LOWER], self.words[_W_UPPER] = lower, upper

    def poke_user_rights(self, allowed: int, counters: bool) -> None:
        """The bits of SCTLR_EL1 that nothing but instructions of EL0 look at, when they execute; PMUSERENR_EL0.EN."""
        words = self.words
        words[_W_SCTLR] = words[_W_SCTLR] & ~USER_MAY | allowed
        words[_W_COUNTERS] = 1 if counters else 0

    def learn_modes(self) -> None:
        """Have Unicorn compute the summary of the mode for both levels; it depends on the control registers.

        Writing PSTATE through the public interface does not compute it, writing a system register does.
        """
        level, masks, flags, world = self.level, self.daif, self.nzcv, self._world
        words = self.words
        choice, words[_W_CHOICE] = words[_W_CHOICE], 0
        for number in range(4):
            self.set_public(SCR_EL3, _NON_SECURE if number >> 1 else _SECURE)
            self._modes[number] = self._mode_of(_EL1H if number & 1 else 0)
        words[_MDSCR // 8] = 1
        self._step = self._mode_of(0) & ~self._modes[2]
        words[_MDSCR // 8] = 0
        rights, words[_W_CPACR], words[_W_CHOICE] = words[_W_CPACR], 0, OWN
        self._denied = self._mode_of(0) & ~self._modes[2]
        words[_W_CPACR], words[_W_CHOICE] = rights, choice
        if not self._denied:
            raise EngineMissing("the unicorn engine does not ask whether floating point traps: install unicorn==2.1.4")
        self.nzcv, self.daif, self.level, self.world = flags, masks, level, world

    def _mode_of(self, pstate: int) -> int:
        value = ctypes.c_uint64(pstate)
        self._library.uc_reg_write(self._handle, arm64_const.UC_ARM64_REG_PSTATE, ctypes.byref(value))
        self.set_public(_DUMMY, self.words[IN_PLACE["TPIDR_EL1"] // 8])
        return self.halves[_MODE // 4]

    @property
    def banked_sp(self) -> memoryview:
        """The stack pointers that are not in use: SP_EL0 and SP_EL1 (full privilege)."""
        return self.words[_BANKED_SP // 8 : _BANKED_SP // 8 + 2]

    # -- vector registers and the monitor -------------------------------------------------------

    def vector(self, number: int) -> int:
        """V0..V31 as a 128-bit number."""
        at = (_VECTORS + number * 256) // 8
        return self.words[at] | self.words[at + 1] << 64

    def set_vector(self, number: int, value: int) -> None:
        """Load V0..V31."""
        at = (_VECTORS + number * 256) // 8
        self.words[at], self.words[at + 1] = value & _MASK, value >> 64

    @property
    def fpcr(self) -> int:
        """The floating-point control register."""
        return self._read(arm64_const.UC_ARM64_REG_FPCR)

    @fpcr.setter
    def fpcr(self, value: int) -> None:
        self._write(arm64_const.UC_ARM64_REG_FPCR, value)

    @property
    def fpsr(self) -> int:
        """The floating-point status register."""
        return self._read(arm64_const.UC_ARM64_REG_FPSR)

    @fpsr.setter
    def fpsr(self, value: int) -> None:
        self._write(arm64_const.UC_ARM64_REG_FPSR, value)

    @property
    def exclusive(self) -> int:
        """The address that the local monitor watches; all ones when it watches none."""
        return self.words[_EXCLUSIVE // 8]

    @property
    def monitor(self) -> tuple[int, int, int]:
        """The local exclusive monitor: the address that it watches, and the two doublewords that were there."""
        address, low, high = self.words[_EXCLUSIVE // 8 : _EXCLUSIVE // 8 + 3]
        return address, low, high

    @monitor.setter
    def monitor(self, value: tuple[int, int, int]) -> None:
        for place, word in enumerate(value):
            self.words[_EXCLUSIVE // 8 + place] = word

    def clear_exclusive(self) -> None:
        """Clear the local exclusive monitor."""
        self.words[_EXCLUSIVE // 8] = _MASK

    def _read(self, register: int) -> int:
        value = ctypes.c_uint64(0)
        self._library.uc_reg_read(self._handle, register, ctypes.byref(value))
        return value.value & 0xFFFF_FFFF

    def _write(self, register: int, value: int) -> None:
        self._library.uc_reg_write(self._handle, register, ctypes.byref(ctypes.c_uint64(value)))


_OFFSETS: Final = {BY_NAME[name].encoding: offset for name, offset in IN_PLACE.items()}
_CONTROLS: Final = frozenset(
    BY_NAME[name].encoding for name in ("SCTLR_EL1", "CPACR_EL1", "TTBR0_EL1", "TTBR1_EL1", "MAIR_EL1")
)
"""What more depends on than instructions that read it."""
