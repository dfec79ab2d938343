"""Start-up experiments that confirm the layout of Unicorn's ARM state.

Room: `emulator/engine/unicorn`. Every field that `arm_state` reads in place is first changed by a route that does not
depend on the layout (the public interface, or an executed instruction) and must then show the expected value;
otherwise the engine refuses to open.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import TYPE_CHECKING

from emulator.engine.arm import DATA_ABORT, DEBUG_EVENT, FULL, IRQ, OTHER, PREFETCH_ABORT, SVC, UNDEFINED, USR, WRITE
from emulator.engine.exit import Exit, ExitKind
from emulator.engine.unicorn import library as lib
from emulator.engine.unicorn.observation import FOREVER
from emulator.errors import EngineMissing, GuestFault

if TYPE_CHECKING:
    from emulator.engine.unicorn.arm import UnicornArmEngine

_SCRATCH = 0xF000_0000
_TABLE, _CODE = _SCRATCH, _SCRATCH + 0x4000
_SIZE = 0x8000
_FPEXC_EN = 1 << 30
_READ_FPEXC = (0xEEF80A10, 0xEF000000)
"""vmrs r0, fpexc; svc."""
_SECTION_USER, _SECTION_KERNEL = 0xC02, 0x402
_REFUSED = 0xF010_0000
_MMU_ON = 0x00C5_0079
_MOST_BLOCKS = 64
"""Basic blocks that the events need, and more."""
_WORDS = (
    0xE5910000,  # ldr r0, [r1]        -> data abort, permission, section
    0xE5810000,  # str r0, [r1]        -> the same, a write
    0xE1200070,  # bkpt 0              -> prefetch abort, debug event
    0xE7F000F0,  # udf 0               -> undefined
    0xE320F002,  # wfe                 -> nothing
    0xE320F001,  # yield               -> nothing
    0xEE1D3F50,  # mrc p15, 0, r3, c13, c0, 2
    0xEE1D4F70,  # mrc p15, 0, r4, c13, c0, 3
    0xE1925F9F,  # ldrex r5, [r2]
    0xEF000000,  # svc 0
    0xE12FFF16,  # bx r6               -> prefetch abort, translation, section
)


def _refuse(what: str, expected: object, found: object) -> EngineMissing:
    return EngineMissing(
        f"the unicorn engine keeps {what} of its ARM processor elsewhere than retrap knows (expected {expected}, found "
        f"{found}): install unicorn==2.1.4"
    )


def confirm(engine: UnicornArmEngine) -> None:
    """Run all experiments; raises `EngineMissing` naming the first field that is not where it should be."""
    registers = engine.registers
    before = registers.cpsr, registers.system("SCTLR"), registers.system("DACR")
    _confirm_banks(engine)
    for world in (OTHER, FULL):
        memory = mmap.mmap(-1, _SIZE)
        pinned = (ctypes.c_char * _SIZE).from_buffer(memory)
        engine.library.uc_mem_map_ptr(engine.handle, _SCRATCH, _SIZE, lib.PROT_ALL, ctypes.addressof(pinned))
        try:
            _begin(engine, world, memoryview(memory).cast("I"))
            _confirm_events(engine, world)
            _confirm_flush(engine, world, memoryview(memory).cast("I"))
        except GuestFault as fault:
            raise _refuse("the state of an exception", "exits", fault) from None
        finally:
            engine.enable_translation(world, before[1])
            engine.set_domains(before[2], world)
            engine.set_root(0, world)
            engine.library.uc_mem_unmap(engine.handle, _SCRATCH, _SIZE)
        engine.set_threads(world, 0, 0)
    registers.cpsr = before[0]
    registers.clear_exclusive()
    for number in range(16):
        registers.gpr[number] = 0


def _begin(engine: UnicornArmEngine, world: int, words: memoryview) -> None:
    """Map one section for User mode and another for the kernel alone, and enter User mode in a world."""
    words[_SCRATCH >> 20] = _SCRATCH | _SECTION_USER
    words[_REFUSED >> 20] = _SCRATCH | _SECTION_KERNEL
    for number, word in enumerate(_WORDS):
        words[0x1000 + number] = word
    engine.enable_translation(world, _MMU_ON)
    engine.set_domains(1, world)
    engine.set_root(_TABLE, world)
    engine.use_world(world)
    engine.registers.cpsr = USR


def _confirm_banks(engine: UnicornArmEngine) -> None:
    """Go through modes by the public interface, and look for their registers in place."""
    registers = engine.registers
    for mode in (SVC, IRQ):
        registers.cpsr = 0xC0 | mode
        if registers.mode != mode:
            raise _refuse("the mode", mode, registers.mode)
        registers.gpr[13], registers.gpr[14], registers.spsr = mode << 8 | 1, mode << 8 | 2, mode << 8 | 3
    registers.cpsr = 0xF000_0020 | USR
    for mode in (SVC, IRQ):
        expected = (mode << 8 | 1, mode << 8 | 2, mode << 8 | 3)
        if registers.banked(mode) != expected:
            raise _refuse("the banked registers", expected, registers.banked(mode))
        registers.set_banked(mode, 0, 0, 0)
    if not registers.thumb:
        raise _refuse("the T bit", True, registers.thumb)
    registers.cpsr = 0x0600_FC20 | USR
    if registers.it_state != 0xFF:
        raise _refuse("the IT state", 0xFF, registers.it_state)
    registers.set_system("TTBR0", 0x1234_4000)
    registers.poke_root(0x5678_4000, FULL)
    if registers.system("TTBR0") != 0x5678_4000:
        raise _refuse("TTBR0", 0x5678_4000, registers.system("TTBR0"))
    registers.poke_domains(0x5555_0001, FULL)
    if registers.system("DACR") != 0x5555_0001:
        raise _refuse("DACR", 0x5555_0001, registers.system("DACR"))
    enabled = registers.fpexc
    for wanted in (enabled ^ _FPEXC_EN, enabled):
        registers.fpexc = wanted
        registers.cpsr = 0xC0 | SVC
        _execute(engine, _READ_FPEXC)
        if registers.gpr[0] != wanted:
            raise _refuse("FPEXC", wanted, registers.gpr[0])


def _confirm_events(engine: UnicornArmEngine, world: int) -> None:
    """Run each kind of event in User mode, and look at what the state says of it."""
    registers = engine.registers
    seen: list[tuple[object, ...]] = []

    def handler(exit_: Exit) -> None:
        at = registers.pc - _CODE
        if exit_.kind is ExitKind.BUDGET:  # an event is not seen, and happens for ever
            seen.append(("no event", at))
            engine.stop()
        elif exit_.kind is ExitKind.SYSTEM_CALL:
            seen.append(("call", at))
        else:
            status = exit_.error if exit_.vector != UNDEFINED else 0
            seen.append((exit_.vector, status, exit_.address if exit_.vector == DATA_ABORT else 0, at))
            registers.pc += 4
        if len(seen) >= 6:
            engine.stop()

    registers.gpr[1], registers.gpr[2], registers.gpr[6] = _REFUSED + 0x123 * 4, _CODE, 0x1234_5678
    engine.set_threads(world, 0x1111_2222 + world, 0x3333_4444 + world)
    registers.pc = _CODE
    engine.set_deadline(engine.progress + _MOST_BLOCKS)
    engine.run(handler)
    engine.set_deadline(FOREVER)
    refused = _REFUSED + 0x123 * 4
    expected = [
        (DATA_ABORT, 0x00D, refused, 0),
        (DATA_ABORT, 0x00D | WRITE, refused, 4),
        (PREFETCH_ABORT, DEBUG_EVENT, 0, 8),
        (UNDEFINED, 0, 0, 12),
        ("call", 40),
        (PREFETCH_ABORT, 0x005, 0, (0x1234_5678 - _CODE)),
    ]
    if seen != expected:
        raise _refuse("the state of an exception", expected, seen)
    threads = registers.gpr[3] - world, registers.gpr[4] - world
    if threads != (0x1111_2222, 0x3333_4444):
        raise _refuse("the thread registers", (0x1111_2222, 0x3333_4444), threads)
    if registers.exclusive_address != _CODE:
        raise _refuse("the exclusive monitor", _CODE, registers.exclusive_address)


def _confirm_flush(engine: UnicornArmEngine, world: int, words: memoryview) -> None:
    """A translation that was used is forgotten by the flush of its page, of its world, and by no flush of the other."""
    registers = engine.registers
    seen: list[int] = []

    def handler(exit_: Exit) -> None:
        seen.append(exit_.vector if exit_.kind is ExitKind.FAULT else 0)
        engine.stop()

    def access(descriptor: int) -> None:
        words[_REFUSED >> 20] = _SCRATCH | descriptor
        registers.gpr[1], registers.pc = _REFUSED + 4, _CODE
        engine.run(handler)

    words[0x1001] = _WORDS[9]
    engine.code_changed(_CODE, 64)
    flushes: tuple[Callable[[], None], ...] = (
        lambda: engine.flush_page(world, _REFUSED + 4),
        lambda: engine.flush_world(world),
        lambda: engine.flush_world(1 - world),
        engine.flush_tlb,
    )
    for flush in flushes:
        access(_SECTION_USER)
        words[_REFUSED >> 20] = _SCRATCH | _SECTION_KERNEL
        flush()
        access(_SECTION_KERNEL)
    expected = [0, DATA_ABORT, 0, DATA_ABORT, 0, 0, 0, DATA_ABORT]
    if seen != expected:
        raise _refuse("the TLB", expected, seen)


_TIMER = (0xEC510F1E, 0xEE0E0F33, 0xEE1E0F13, 0xEF000000)
"""mrrc CNTVCT; mcr CNTV_CTL; mrc CNTFRQ; svc."""


def _execute(engine: UnicornArmEngine, code: tuple[int, ...]) -> list[int]:
    """Run words with the MMU off, each exit stepped over, up to an SVC; the vectors of the exits, 0 for the SVC."""
    registers = engine.registers
    memory = mmap.mmap(-1, _SIZE)
    pinned = (ctypes.c_char * _SIZE).from_buffer(memory)
    memory[: 4 * len(code)] = b"".join(word.to_bytes(4, "little") for word in code)
    engine.library.uc_mem_map_ptr(engine.handle, _SCRATCH, _SIZE, lib.PROT_ALL, ctypes.addressof(pinned))
    seen: list[int] = []

    def handler(exit_: Exit) -> None:
        seen.append(exit_.vector if exit_.kind is ExitKind.FAULT else 0)
        if exit_.kind is not ExitKind.FAULT or len(seen) > len(code):
            engine.stop()
        registers.pc += 4

    try:
        registers.pc = _SCRATCH
        engine.run(handler)
    except GuestFault as fault:
        raise _refuse("the state of an exception", "exits", fault) from None
    finally:
        engine.library.uc_mem_unmap(engine.handle, _SCRATCH, _SIZE)
        engine.flush_code()
    return seen


def confirm_timer(engine: UnicornArmEngine) -> None:
    """Accesses to the timer are undefined in Supervisor mode. Raises `EngineMissing`."""
    registers = engine.registers
    before = registers.cpsr
    registers.cpsr = 0xC0 | SVC
    seen = _execute(engine, _TIMER)
    registers.cpsr, registers.pc = before, 0
    if seen != [UNDEFINED, UNDEFINED, UNDEFINED, 0]:
        raise _refuse("the timer", [UNDEFINED, UNDEFINED, UNDEFINED, 0], seen)
