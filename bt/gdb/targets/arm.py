"""AArch64 and ARMv7 as gdb sees them, with the registers of EL1 or of the privileged modes.

Room: `bt/gdb/targets`. Translation is by the guest's tables (`bt.gdb.targets.tables`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from bt.gdb.targets import Register, Target, general, of_either
from bt.gdb.targets.tables import mappings_32, mappings_64, walk_32, walk_64
from emulator.isa.aarch64.registers import BY_NAME

_CONTEXT, _FIELD = "context", "field"
_A64, _A32, _OWN = "org.gnu.gdb.aarch64.core", "org.gnu.gdb.arm.core", "retrap.system"


def _set_pc(cpu: Any, value: int) -> None:
    cpu.registers.pc = value


def _system(name: str, where: str, key: Any) -> Callable[[Any], int]:
    """A system register: of a virtual processor in its field of that `name`, or in its context's, or among its other
    registers by `key`; at full privilege the engine's own by `key`."""

    def read(cpu: Any) -> int:
        if not hasattr(cpu, "system_registers"):
            return int(cpu.registers.system(key))
        if where:
            return int(getattr(cpu.context if where == _CONTEXT else cpu, name))
        return int(cpu.system_registers.get(key, 0))

    return read


def _rows_64() -> Iterator[Register]:
    for number in range(32):
        read, write = general(number)
        name, kind = (f"x{number}", "int") if number < 31 else ("sp", "data_ptr")
        yield Register(name, 64, _A64, read, write, kind)
    yield Register("pc", 64, _A64, lambda cpu: int(cpu.registers.pc), _set_pc, "code_ptr")
    yield Register("cpsr", 32, _A64, of_either("pstate"), None, "int")
    for names, where in (
        (("sctlr", "tcr", "ttbr0", "ttbr1"), _CONTEXT),
        (("elr", "spsr", "esr", "far"), _FIELD),
        (("vbar", "mair", "cpacr", "contextidr", "par"), ""),
    ):
        for name in names:
            key = BY_NAME[f"{name.upper()}_EL1"].encoding
            yield Register(f"{name}_el1", 64, _OWN, _system(name, where, key))
    yield Register("sp_el0", 64, _OWN, _system("sp_el0", _FIELD, BY_NAME["SP_EL0"].encoding))
    yield Register("el", 32, _OWN, lambda cpu: int(cpu.level))


def _rows_32() -> Iterator[Register]:
    for number in range(15):
        read, write = general(number)
        name = {13: "sp", 14: "lr"}.get(number, f"r{number}")
        yield Register(name, 32, _A32, read, write, "data_ptr" if number == 13 else "uint32")
    yield Register("pc", 32, _A32, of_either("pc"), _set_pc, "code_ptr")
    yield Register("cpsr", 32, _A32, of_either("cpsr"), None, "uint32", 25)
    for names, where in (
        (("sctlr", "ttbr0", "ttbr1", "ttbcr", "dacr"), _CONTEXT),
        (("vbar",), _FIELD),
        (("dfsr", "dfar", "ifsr", "ifar", "cpacr", "contextidr"), ""),
    ):
        for name in names:
            yield Register(name, 32, _OWN, _system(name, where, name.upper()))
    yield Register("mode", 32, _OWN, lambda cpu: of_either("cpsr")(cpu) & 0x1F)


AARCH64: Final = Target("aarch64", tuple(_rows_64()), walk_64, "pc", mappings_64)
ARMV7: Final = Target("arm", tuple(_rows_32()), walk_32, "pc", mappings_32, word=4)
