"""Start-up experiments that confirm the layout of Unicorn's CPU state.

Room: `emulator/engine/unicorn`. Every field that `state.py` reads in place is first changed by a
route that does not depend on the layout (the public interface, or an executed instruction) and must
then show the expected value; otherwise the engine refuses to open.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import TYPE_CHECKING

from emulator.engine.exit import Exit, ExitKind
from emulator.engine.unicorn import library as lib
from emulator.errors import EngineMissing, GuestFault

if TYPE_CHECKING:
    from emulator.engine.unicorn.engine import UnicornEngine

_SCRATCH = 1 << 32
_CODE = bytes.fromhex(
    "b834120000 8ed8"  # mov eax, 0x1234; mov ds, ax  -> #GP(0x1234)
    "b878560000 8ed8"  # mov eax, 0x5678; mov ds, ax  -> #GP(0x5678)
    "cd21"  # int 0x21
)
_READ_SELF = bytes.fromhex("90 488b05f9ffffff f4")  # nop; mov rax, [rip - 7]; hlt
_FIRST, _SECOND, _INT = 5, 12, 14
_USER = bytes.fromhex("8cd0 fa")  # mov eax, ss; cli
_STACK_SELECTOR = 0x2B


def confirm(engine: UnicornEngine) -> None:
    """Run all experiments; raises `EngineMissing` naming the first field that is not where it should be."""
    _confirm_public(engine)
    _confirm_events(engine)
    _confirm_user_level(engine)
    for number in range(16):
        engine.registers.gpr[number] = 0


def probe_execute_only(engine: UnicornEngine) -> bool:
    """Whether a page of protection key 1 executes and does not read, found by doing both in user mode."""
    return _in_user_mode(engine, _READ_SELF, 1 << 59) == (1, 14, 0x25)


def _in_user_mode(engine: UnicornEngine, code: bytes, rights: int = 0) -> tuple[int, int, int]:
    """Execute `code` on a page of its own at level 3: offset of RIP, vector and error code of its first exit."""
    memory = mmap.mmap(-1, 5 * mmap.PAGESIZE)
    words = memoryview(memory).cast("Q")
    for level in range(3):
        words[level * 512 + (_SCRATCH >> 30 if level == 1 else 0)] = _SCRATCH + (level + 1) * 4096 | 7
    words[3 * 512] = _SCRATCH + 4 * 4096 | 5 | rights
    memory[4 * 4096 : 4 * 4096 + len(code)] = code
    pinned = (ctypes.c_char * len(memory)).from_buffer(memory)
    library, handle, registers = engine.library, engine.handle, engine.registers
    library.uc_mem_map_ptr(handle, _SCRATCH, len(memory), lib.PROT_ALL, ctypes.addressof(pinned))
    seen: list[tuple[int, int, int]] = []

    def handler(exit_: Exit) -> None:
        seen.append((registers.rip - _SCRATCH, exit_.vector, exit_.error))
        engine.stop()

    mode = registers.mode
    segments = [registers.segment(index) for index in range(8)]
    try:
        engine.set_root(_SCRATCH)
        engine.set_control(0x8000_0011, 0x20, 0xD00)
        registers.set_segment(1, 0x33, 0, 0xFFFF_FFFF, 0x20FB00)
        registers.set_segment(2, _STACK_SELECTOR, 0, 0xFFFF_FFFF, 0xC0F300)
        registers.privilege = 3
        registers.protect_keys(4)
        registers.rip = _SCRATCH
        engine.run(handler)
    except GuestFault as fault:
        raise _refuse("the privilege level", "code at level 3", fault) from None
    finally:
        engine.set_control(0x11, 0x20, 0x500)
        registers.protect_keys(0, False)
        engine.set_root(0)
        for index, segment in enumerate(segments):
            registers.set_segment(index, *segment)
        registers.mode = mode
        registers.cr2 = 0
        library.uc_mem_unmap(handle, _SCRATCH, len(memory))
    return seen[0]


def _refuse(what: str, expected: object, found: object) -> EngineMissing:
    return EngineMissing(
        f"the unicorn engine keeps {what} elsewhere than retrap knows (expected {expected}, found {found}): "
        "install unicorn==2.1.4"
    )


def _confirm_public(engine: UnicornEngine) -> None:
    """Write through the public interface, read in place."""
    registers, library, handle = engine.registers, engine.library, engine.handle

    def put(register: int, value: int) -> None:
        library.uc_reg_write(handle, register, ctypes.byref(ctypes.c_uint64(value)))

    flags_number = lib.REG_EFLAGS
    before = registers.rip, registers.rflags
    put(lib.REG_RIP, 0x1234_5678)
    put(flags_number, 0xAD7)
    found: list[tuple[str, object, object]] = [
        ("RIP", 0x1234_5678, registers.rip),
        ("RFLAGS", 0xAD7, registers.rflags),
    ]
    registers.rflags = 0x8D5 | 0x400 | 2
    value = ctypes.c_uint64(0)
    library.uc_reg_read(handle, flags_number, ctypes.byref(value))
    found.append(("the arithmetic flags", 0xCD7, value.value))
    put(lib.REG_CR2, 0x7777_0000)
    found.append(("CR2", 0x7777_0000, registers.cr2))
    put(lib.REG_FS_BASE, 0x1111_2222_3333)
    found.append(("the FS base", 0x1111_2222_3333, registers.segment_base(4)))
    for which, register in ((0, lib.REG_GDTR), (1, lib.REG_IDTR)):
        table = lib.TableRegister(0, 0xABC000 + which, 0x7F, 0)
        library.uc_reg_write(handle, register, ctypes.byref(table))
        found.append((("GDTR", "IDTR")[which], (0xABC000 + which, 0x7F), registers.table(which)))
        registers.set_table(which, 0, 0)
    put(lib.REG_DR0 + 6, 0xFFFF_4FF0)
    found.append(("DR6", 0xFFFF_4FF0, registers.debug(6)))
    found.append(("the privilege level", 0, registers.privilege))
    for number in (0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0102):
        engine.write_msr(number, 0x1234_0000_0000 + number)
        found.append((f"MSR {number:#x}", 0x1234_0000_0000 + number, registers.msr(number)))
        engine.write_msr(number, 0)
    for what, expected, seen in found:
        if expected != seen:
            raise _refuse(what, expected, seen)
    registers.rip, registers.rflags = before
    registers.cr2 = 0
    registers.set_debug(6, 0xFFFF_0FF0)
    registers.set_segment_base(4, 0)


def _confirm_events(engine: UnicornEngine) -> None:
    """Run two #GPs with different selectors and an INT, and look at what the state says of them."""
    page = mmap.mmap(-1, mmap.PAGESIZE)
    page.write(_CODE)
    pinned = (ctypes.c_char * mmap.PAGESIZE).from_buffer(page)
    library, handle, registers = engine.library, engine.handle, engine.registers
    library.uc_mem_map_ptr(handle, _SCRATCH, mmap.PAGESIZE, lib.PROT_ALL, ctypes.addressof(pinned))
    seen: list[tuple[object, ...]] = []

    def handler(exit_: Exit) -> None:
        offset = registers.rip - _SCRATCH
        if exit_.kind is ExitKind.FAULT:
            seen.append((offset, exit_.vector, exit_.error))
            registers.rip += 2
        else:
            seen.append((offset, exit_.vector, exit_.length))
            engine.stop()
        if len(seen) > 3:
            engine.stop()

    registers.rip = _SCRATCH
    try:
        engine.run(handler)
    except GuestFault as fault:
        raise _refuse("the state of an exception", "exits", fault) from None
    finally:
        library.uc_mem_unmap(handle, _SCRATCH, mmap.PAGESIZE)
    expected = [(_FIRST, 13, 0x1234), (_SECOND, 13, 0x5678), (_INT, 0x21, 2)]
    if seen != expected:
        raise _refuse("the state of an exception", expected, seen)


def _confirm_user_level(engine: UnicornEngine) -> None:
    """A privileged instruction at level 3 faults, and the selector that was loaded is the one that it reads."""
    found = _in_user_mode(engine, _USER)
    if found != (2, 13, 0):
        raise _refuse("the privilege level", (2, 13, 0), found)
    if engine.registers.gpr[0] != _STACK_SELECTOR:
        raise _refuse("the segment registers", _STACK_SELECTOR, engine.registers.gpr[0])
