"""Start-up experiments that confirm the layout of Unicorn's AArch64 state.

Room: `emulator/engine/unicorn`. Every field that `aarch64_state` reads in place is first changed by a route that does
not depend on the layout (the public interface, or an executed instruction) and must then show the expected value;
otherwise the engine refuses to open.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import TYPE_CHECKING

from unicorn import arm64_const

from emulator.engine.exit import Exit, ExitKind
from emulator.engine.unicorn import aarch64_state as state
from emulator.engine.unicorn import library as lib
from emulator.engine.unicorn.aarch64_state import IN_PLACE
from emulator.errors import EngineMissing, GuestFault
from emulator.isa.aarch64.registers import BY_NAME

if TYPE_CHECKING:
    from emulator.engine.unicorn.aarch64 import UnicornAArch64Engine

_SCRATCH = 1 << 32
_TABLE, _CODE = _SCRATCH, _SCRATCH + 0x3000
_SIZE = 0x5000
_MMU_ON = 0x30D0_0801
_TCR = 25 | 1 << 23 | 1 << 32
"""39-bit lower half by 4 KiB pages, no upper half, 36-bit physical addresses."""
_PAGE_USER = 3 | 1 << 6 | 3 << 8 | 1 << 10
_PAGE_EXECUTE_ONLY = 3 | 3 << 8 | 1 << 10
_REFUSED = _SCRATCH + 0x1238
_WORDS = (
    0xF940_0020,  # ldr x0, [x1]        -> data abort, permission, level 3
    0xF900_0020,  # str x0, [x1]        -> the same, a write
    0xD420_0EE0,  # brk #0x77
    0x0000_0000,  # undefined
    0xD503_207F,  # wfi                 -> trapped, as SCTLR_EL1.nTWI is clear
    0xD503_205F,  # wfe                 -> goes on
    0xEB1F_03FF,  # subs xzr, xzr, xzr  -> Z and C
    0xC85F_7C45,  # ldxr x5, [x2]
    0xD53B_D046,  # mrs x6, tpidr_el0
    0xD53B_D067,  # mrs x7, tpidrro_el0
    0x9E67_00C9,  # fmov d9, x6
    0xF940_0068,  # ldr x8, [x3]        -> data abort: executable and not readable
    0xD400_2461,  # svc #0x123
)
_AT_CALL = 4 * len(_WORDS)


def _refuse(what: str, expected: object, found: object) -> EngineMissing:
    return EngineMissing(
        f"the unicorn engine keeps {what} of its AArch64 processor elsewhere than retrap knows (expected {expected}, "
        f"found {found}): install unicorn==2.1.4"
    )


def confirm(engine: UnicornAArch64Engine) -> None:
    """Run all experiments; raises `EngineMissing` naming the first field that is not where it should be."""
    _confirm_public(engine)
    registers = engine.registers
    kept = {name: registers.public(BY_NAME[name].encoding) for name in ("SCTLR_EL1", "TCR_EL1", "MAIR_EL1")}
    try:
        _confirm_events(engine)
    finally:
        registers.nzcv, registers.daif, registers.level = 0, 0x3C0, 1
        engine.set_roots(0, 0)
        engine.set_control(kept["SCTLR_EL1"], kept["TCR_EL1"], kept["MAIR_EL1"])
    registers.thread = registers.thread_read_only = 0
    registers.clear_exclusive()
    registers.set_vector(9, 0)
    for number in range(32):
        registers.gpr[number] = 0


def _confirm_public(engine: UnicornAArch64Engine) -> None:
    """Write through the public interface, read in place."""
    registers, library, handle = engine.registers, engine.library, engine.handle
    for number, (name, offset) in enumerate(IN_PLACE.items()):
        register = BY_NAME[name].encoding
        before = registers.public(register)
        wanted = before ^ (0x40 if name == "SCTLR_EL1" else 0x1000 + 0x8000 * number)
        registers.set_public(register, wanted)
        expected, found = registers.public(register), registers.words[offset // 8]
        registers.set_public(register, before)
        if found != expected or expected == before:
            raise _refuse(name, expected, found)
    for name, register, place in (
        ("SCR_EL3", state.SCR_EL3, state._SCR),
        ("HCR_EL2", state.HCR_EL2, state._HCR),
        ("MDSCR_EL1", BY_NAME["MDSCR_EL1"].encoding, state._MDSCR),
    ):
        before = registers.public(register)
        registers.set_public(register, before ^ 0x1000)
        wanted, found = registers.public(register), registers.words[place // 8]
        registers.set_public(register, before)
        if found != wanted or wanted == before:
            raise _refuse(name, hex(wanted), hex(found))
    numbers = (arm64_const.UC_ARM64_REG_PC, arm64_const.UC_ARM64_REG_SP, arm64_const.UC_ARM64_REG_X30)
    for number, constant in enumerate(numbers):
        library.uc_reg_write(handle, constant, ctypes.byref(ctypes.c_uint64(0x1234_5670 + 16 * number)))
    found_values = [registers.pc, registers.gpr[31], registers.gpr[30]]
    if found_values != [0x1234_5670, 0x1234_5680, 0x1234_5690]:
        raise _refuse("PC, SP or X30", 0x1234_5670, found_values)
    registers.pc = 0
    for pstate in (0x9000_03C5, 0x6000_0000, 0x3000_0145, 0xC000_0285):
        library.uc_reg_write(handle, arm64_const.UC_ARM64_REG_PSTATE, ctypes.byref(ctypes.c_uint64(pstate)))
        if registers.pstate != pstate:
            raise _refuse("PSTATE", hex(pstate), hex(registers.pstate))
    registers.nzcv, registers.daif, registers.level = 0xA000_0000, 0x80, 1
    value = ctypes.c_uint64(0)
    library.uc_reg_read(handle, arm64_const.UC_ARM64_REG_PSTATE, ctypes.byref(value))
    if value.value & 0xFFFF_FFFF != 0xA000_0085:
        raise _refuse("PSTATE", hex(0xA000_0085), hex(value.value))


def _confirm_events(engine: UnicornAArch64Engine) -> None:
    """Run each kind of event at EL0, and look at what the state says of it."""
    memory = mmap.mmap(-1, _SIZE)
    words = memoryview(memory).cast("Q")
    words[_SCRATCH >> 30] = _TABLE + 0x1000 | 3
    words[0x200] = _TABLE + 0x2000 | 3
    words[0x400 + 3] = _CODE | _PAGE_USER
    words[0x400 + 4] = _CODE + 0x1000 | _PAGE_USER
    words[0x400 + 1] = _SCRATCH + 0x1000 | _PAGE_EXECUTE_ONLY
    memory[0x3000 : 0x3000 + _AT_CALL] = b"".join(word.to_bytes(4, "little") for word in _WORDS)
    pinned = (ctypes.c_char * _SIZE).from_buffer(memory)
    library, handle, registers = engine.library, engine.handle, engine.registers
    library.uc_mem_map_ptr(handle, _SCRATCH, _SIZE, lib.PROT_ALL, ctypes.addressof(pinned))
    seen: list[tuple[int, int, int]] = []

    def handler(exit_: Exit) -> None:
        aborted = exit_.vector in (0x20, 0x24)
        kind = exit_.error if exit_.kind is ExitKind.FAULT else -1
        seen.append((registers.pc - _CODE, kind, exit_.address if aborted else 0))
        if len(seen) > 6:
            engine.stop()
        else:
            registers.advance()

    try:
        registers.poke_roots(_TABLE, 0)
        engine.set_control(_MMU_ON, _TCR, 0xFF)
        registers.level = 0
        registers.nzcv = 0x9000_0000
        registers.gpr[1], registers.gpr[2], registers.gpr[3] = _REFUSED, _CODE + 0x1008, _REFUSED
        registers.thread, registers.thread_read_only = 0x1111_2222_3333, 0x4444_5555_6666
        registers.pc = _CODE
        engine.run(handler)
    except GuestFault as fault:
        raise _refuse("the state of an exception", "exits", fault) from None
    finally:
        library.uc_mem_unmap(handle, _SCRATCH, _SIZE)
    expected = [
        (0, 0x9200_000F, _REFUSED),
        (4, 0x9200_004F, _REFUSED),
        (8, 0xF200_0077, 0),
        (12, 0x0200_0000, 0),
        (16, 0x07E0_0000, 0),
        (44, 0x9200_000F, _REFUSED),
        (_AT_CALL, 0x5600_0123, 0),
    ]
    if seen != expected:
        raise _refuse("the state of an exception", expected, seen)
    found = (registers.gpr[6], registers.gpr[7], registers.exclusive, registers.nzcv, registers.vector(9))
    wanted = (0x1111_2222_3333, 0x4444_5555_6666, _CODE + 0x1008, 0x6000_0000, 0x1111_2222_3333)
    if found != wanted:
        raise _refuse("the thread registers, the monitor, the flags or the vector registers", wanted, found)
