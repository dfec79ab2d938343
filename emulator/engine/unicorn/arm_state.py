"""The CPU state of Unicorn's ARM, read and written in place.

Room: `emulator/engine/unicorn`. The public interface costs microseconds a register and does not show banked
registers, fault status or fault address. The offsets are those of the 2.1.4 wheel (`CPUARMState` of QEMU 5.0);
`arm_confirm` confirms every one of them by experiment when an engine is opened.
"""

from __future__ import annotations

import ctypes
import struct
from functools import partial
from typing import Any, Final

from unicorn import arm_const

from emulator.engine.arm import HYP, MON
from emulator.engine.unicorn.floating_access import CHOICE, OWN
from emulator.engine.unicorn.state_search import find_pattern, read_memory
from emulator.errors import EngineMissing
from emulator.isa.arm.system_registers import REGISTER_OF_NAME, SystemRegister

# Offsets into the CPU state, in 32-bit words.
_MODE = 0x154 // 4
_SPSR = 0x158 // 4
_BANKED_SPSR = 0x160 // 4  # eight of 64 bits
_BANKED_SP = 0x1A0 // 4
_BANKED_LR = 0x1C0 // 4
_THUMB = 0x220 // 4
_IT = 0x224 // 4
_ROOT = (0x308 // 4, 0x318 // 4)  # by world
_DOMAINS = (0x3A0 // 4, 0x3A8 // 4)
_USER_THREAD = (0x510 // 4, 0x530 // 4)
_USER_THREAD_RO = (0x548 // 4, 0x540 // 4)
W_SYNDROME: Final = 0xBD0 // 4
W_STATUS: Final = 0xBD4 // 4
W_FAULT_ADDRESS: Final = 0xBD8 // 4
_FPEXC = 0xE48 // 4
_CHOICE = CHOICE // 4
_EXCLUSIVE = 0xEC0 // 4
_SIZE = 0x1000
_STATE_IN_CPU = 0xA2F0

PC: Final = 15
_PATTERN = 0x5E77_0000
_BANKS: Final = {0x10: 0, 0x1F: 0, 0x13: 1, 0x17: 2, 0x1B: 3, 0x12: 4, 0x11: 5, 0x1A: 6, 0x16: 7}
"""QEMU's numbers of the banks, by mode."""
_FLOATING: Final = (
    arm_const.UC_ARM_REG_FPSCR,
    *(getattr(arm_const, f"UC_ARM_REG_D{number}") for number in range(32)),
)
_GENERAL: Final = tuple(getattr(arm_const, f"UC_ARM_REG_R{number}") for number in range(15))


class SystemAccess(ctypes.Structure):
    """`uc_arm_cp_reg` of unicorn/arm.h."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("cp", "is64", "sec", "crn", "crm", "opc1", "opc2")),
        ("val", ctypes.c_uint64),
    )


def access(register: SystemRegister, value: int = 0, secure: bool = False) -> SystemAccess:
    """How Unicorn wants a system register named, of one of the two worlds."""
    crn = 0 if register.wide else register.crn
    return SystemAccess(
        register.coprocessor, register.wide, secure, crn, register.crm, register.opc1, register.opc2, value
    )


def find_state(library: Any, handle: int) -> int:
    """Host address of the CPU state behind an open engine, found by a pattern in its registers."""
    values = [_PATTERN + number * 0x103 for number in range(15)]
    for register, value in zip(_GENERAL, values, strict=True):
        library.uc_reg_write(handle, register, ctypes.byref(ctypes.c_uint32(value)))
    pattern = struct.pack("<15I", *values)
    return find_pattern(handle, pattern, partial(_lives, library, handle))


def find_cpu(handle: int, state: int) -> int:
    """Host address of QEMU's CPU object, which holds the state. Raises `EngineMissing` where it is not as known."""
    pointers = (ctypes.c_uint64 * 512).from_address(handle)
    if state - _STATE_IN_CPU not in pointers:
        raise EngineMissing("the unicorn engine keeps its CPU where retrap does not find it: install unicorn==2.1.4")
    return state - _STATE_IN_CPU


def _lives(library: Any, handle: int, descriptor: int, address: int) -> bool:
    """Whether a register written through the public interface changes the word at `address`: no stale copy."""
    library.uc_reg_write(handle, _GENERAL[0], ctypes.byref(ctypes.c_uint32(0x5E77_FFFF)))
    seen = read_memory(descriptor, address, 4)
    library.uc_reg_write(handle, _GENERAL[0], ctypes.byref(ctypes.c_uint32(_PATTERN)))
    return seen == struct.pack("<I", 0x5E77_FFFF)


class UnicornArmRegisters:
    """The register view of one engine (`emulator.engine.arm.ArmRegisters`)."""

    __slots__ = ("_buffer", "_handle", "_library", "_reference", "_status", "address", "gpr", "words")

    def __init__(self, library: Any, handle: int, address: int) -> None:
        self.address = address
        self._buffer = (ctypes.c_char * _SIZE).from_address(address)
        self.words = memoryview(self._buffer).cast("B").cast("I")
        self.gpr = self.words[0:16]
        self._handle = handle
        self._library = library
        self._status = ctypes.c_uint32(0)
        self._reference = ctypes.byref(self._status)

    @property
    def pc(self) -> int:
        """Address of the next instruction."""
        return self.words[PC]

    @pc.setter
    def pc(self, value: int) -> None:
        self.words[PC] = value

    @property
    def thumb(self) -> bool:
        """CPSR.T."""
        return self.words[_THUMB] != 0

    @thumb.setter
    def thumb(self, value: bool) -> None:
        self.words[_THUMB] = value

    @property
    def it_state(self) -> int:
        """CPSR.IT as one field of eight bits."""
        return self.words[_IT]

    @it_state.setter
    def it_state(self, value: int) -> None:
        self.words[_IT] = value

    @property
    def cpsr(self) -> int:
        """The whole CPSR; the flags are kept apart, so the engine puts them together."""
        self._library.uc_reg_read(self._handle, arm_const.UC_ARM_REG_CPSR, self._reference)
        return self._status.value

    @cpsr.setter
    def cpsr(self, value: int) -> None:
        if value & 0x1F not in _BANKS:
            raise ValueError(f"CPSR {value:#x} names no mode of this processor")
        self._status.value = value
        self._library.uc_reg_write(self._handle, arm_const.UC_ARM_REG_CPSR, self._reference)

    @property
    def mode(self) -> int:
        """CPSR.M."""
        return self.words[_MODE] & 0x1F

    @property
    def spsr(self) -> int:
        """SPSR of the current mode."""
        return self.words[_SPSR]

    @spsr.setter
    def spsr(self, value: int) -> None:
        self.words[_SPSR] = value

    def banked(self, mode: int) -> tuple[int, int, int]:
        """SP, LR and SPSR of a mode that is not the current one."""
        bank = self._bank(mode)
        words = self.words
        return words[_BANKED_SP + bank], words[_BANKED_LR + bank], words[_BANKED_SPSR + 2 * bank]

    def set_banked(self, mode: int, sp: int, lr: int, spsr: int) -> None:
        """Change SP, LR and SPSR of a mode that is not the current one."""
        bank = self._bank(mode)
        words = self.words
        words[_BANKED_SP + bank], words[_BANKED_LR + bank], words[_BANKED_SPSR + 2 * bank] = sp, lr, spsr

    def _bank(self, mode: int) -> int:
        if mode not in _BANKS or mode in (HYP, MON):
            raise ValueError(f"mode {mode:#x} has no bank that can be changed")
        bank = _BANKS[mode]
        if bank == _BANKS[self.mode]:
            raise ValueError(f"mode {mode:#x} is the current one: its registers are R13 and R14")
        return bank

    def advance(self, length: int) -> None:
        """Move PC over an instruction of `length` bytes, and the IT state with it (ARM A2.5.2)."""
        words = self.words
        words[PC] = words[PC] + length & 0xFFFF_FFFF
        state = words[_IT]
        if state:
            words[_IT] = state & 0xE0 | state << 1 & 0x1F if state & 7 else 0

    def threads(self, world: int) -> tuple[int, int]:
        """TPIDRURW and TPIDRURO of a world."""
        return self.words[_USER_THREAD[world]], self.words[_USER_THREAD_RO[world]]

    def set_threads(self, world: int, writable: int, readonly: int) -> None:
        """Load TPIDRURW and TPIDRURO of a world."""
        self.words[_USER_THREAD[world]], self.words[_USER_THREAD_RO[world]] = writable, readonly

    @property
    def fpexc(self) -> int:
        """FPEXC."""
        return self.words[_FPEXC]

    @fpexc.setter
    def fpexc(self, value: int) -> None:
        self.words[_FPEXC] = value
        self.floating_point_changed()  # the summary of the mode, which selects translated code, depends on it

    def ask_floating_point(self, asked: memoryview | None) -> None:
        """Have words say whether floating point runs where FPEXC lets it; None: CPACR."""
        address = OWN if asked is None else ctypes.addressof(ctypes.c_char.from_buffer(asked)) | 1
        self.words[_CHOICE], self.words[_CHOICE + 1] = address & 0xFFFF_FFFF, address >> 32
        self.floating_point_changed()

    def floating_point_changed(self) -> None:
        """Sum the mode up anew."""
        self.cpsr = self.cpsr

    @property
    def exclusive_address(self) -> int:
        """The address of the exclusive monitor, all ones when it is open."""
        return self.words[_EXCLUSIVE] | self.words[_EXCLUSIVE + 1] << 32

    @property
    def monitor(self) -> tuple[int, int]:
        """The exclusive monitor: its address, all ones when it is open, and what was there."""
        words = self.words[_EXCLUSIVE : _EXCLUSIVE + 4]
        return words[0] | words[1] << 32, words[2] | words[3] << 32

    @monitor.setter
    def monitor(self, value: tuple[int, int]) -> None:
        for place, number in enumerate(value):
            self.words[_EXCLUSIVE + 2 * place] = number & 0xFFFF_FFFF
            self.words[_EXCLUSIVE + 2 * place + 1] = number >> 32

    @property
    def floating(self) -> tuple[int, ...]:
        """FPSCR, and D0 to D31."""
        return tuple(map(self._read, _FLOATING))

    @floating.setter
    def floating(self, values: tuple[int, ...]) -> None:
        for register, value in zip(_FLOATING, values, strict=True):
            self._library.uc_reg_write(self._handle, register, ctypes.byref(ctypes.c_uint64(value)))

    def _read(self, register: int) -> int:
        value = ctypes.c_uint64(0)
        self._library.uc_reg_read(self._handle, register, ctypes.byref(value))
        return value.value

    def clear_exclusive(self) -> None:
        """CLREX."""
        self.words[_EXCLUSIVE] = self.words[_EXCLUSIVE + 1] = 0xFFFF_FFFF

    def system(self, name: str) -> int:
        """A system register of the real processor. Raises KeyError for a name that the table has not."""
        wanted = access(REGISTER_OF_NAME[name])
        self._library.uc_reg_read(self._handle, arm_const.UC_ARM_REG_CP_REG, ctypes.byref(wanted))
        return int(wanted.val)

    def set_system(self, name: str, value: int, secure: bool = False) -> None:
        """Write a system register of the real processor."""
        wanted = access(REGISTER_OF_NAME[name], value, secure)
        self._library.uc_reg_write(self._handle, arm_const.UC_ARM_REG_CP_REG, ctypes.byref(wanted))

    def poke_root(self, value: int, world: int) -> None:
        """Change TTBR0 without telling the TLB: the engine flushes."""
        self.words[_ROOT[world]] = value

    def poke_domains(self, value: int, world: int) -> None:
        """Change DACR without telling the TLB."""
        self.words[_DOMAINS[world]] = value

    def forget_syndrome(self) -> None:
        """So that the next event shows whether it has a syndrome of its own."""
        self.words[W_SYNDROME] = 0
