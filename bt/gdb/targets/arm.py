"""AArch64 and ARMv7 as gdb sees them, with the registers of EL1 or of the privileged modes.

Room: `bt/gdb/targets`. Translation is by the guest's tables (`bt.gdb.targets.tables`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from bt.gdb.targets import Register, Target, general, of_either
from bt.gdb.targets.tables import mappings_32, mappings_64, walk_32, walk_64

_A64, _A32, _OWN = "org.gnu.gdb.aarch64.core", "org.gnu.gdb.arm.core", "retrap.system"


def _set_pc(cpu: Any, value: int) -> None:
    cpu.registers.pc = value


def _context(name: str) -> Callable[[Any], int]:
    return lambda cpu: int(getattr(getattr(cpu, "context", None), name, 0))


def _plain(name: str) -> Callable[[Any], int]:
    return lambda cpu: int(getattr(cpu, name, 0))


def _rows_64() -> Iterator[Register]:
    for number in range(32):
        read, write = general(number)
        name, kind = (f"x{number}", "int") if number < 31 else ("sp", "data_ptr")
        yield Register(name, 64, _A64, read, write, kind)
    yield Register("pc", 64, _A64, lambda cpu: int(cpu.registers.pc), _set_pc, "code_ptr")
    yield Register("cpsr", 32, _A64, of_either("pstate"), None, "int")
    for name in ("sctlr", "tcr", "ttbr0", "ttbr1"):
        yield Register(f"{name}_el1", 64, _OWN, _context(name))
    for name in ("elr", "spsr", "esr", "far"):
        yield Register(f"{name}_el1", 64, _OWN, _plain(name))
    yield Register("sp_el0", 64, _OWN, _plain("sp_el0"))
    yield Register("el", 32, _OWN, _plain("level"))


def _rows_32() -> Iterator[Register]:
    for number in range(15):
        read, write = general(number)
        name = {13: "sp", 14: "lr"}.get(number, f"r{number}")
        yield Register(name, 32, _A32, read, write, "data_ptr" if number == 13 else "uint32")
    yield Register("pc", 32, _A32, of_either("pc"), _set_pc, "code_ptr")
    yield Register("cpsr", 32, _A32, of_either("cpsr"), None, "uint32", 25)
    for name in ("sctlr", "ttbr0", "ttbr1", "ttbcr", "dacr"):
        yield Register(name, 32, _OWN, _context(name))
    yield Register("vbar", 32, _OWN, _plain("vbar"))
    yield Register("mode", 32, _OWN, _plain("mode"))


AARCH64: Final = Target("aarch64", tuple(_rows_64()), walk_64, "pc", mappings_64)
ARMV7: Final = Target("arm", tuple(_rows_32()), walk_32, "pc", mappings_32, word=4)
