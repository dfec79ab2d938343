"""MIPS32 as gdb sees it, with coprocessor 0.

Room: `bt/gdb/targets`. There are no tables of the hardware's: translation is by the virtual TLB, and
that is what is listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from bt.gdb.targets import Register, Target, by_frame, general, of_either
from bt.gdb.targets.tables import mappings_tlb

_CPU, _CP0, _FPU, _OWN = (
    "org.gnu.gdb.mips.cpu",
    "org.gnu.gdb.mips.cp0",
    "org.gnu.gdb.mips.fpu",
    "retrap.system",
)


def _plain(name: str) -> Callable[[Any], int]:
    return lambda cpu: int(getattr(cpu, name, 0))


def _exception_base(cpu: Any) -> int:
    """EBase; at full privilege, where the engine shows it by what it is for, the base of the vectors."""
    return int(cpu.ebase if hasattr(cpu, "ebase") else cpu.exception_base)


def _float(number: int) -> Callable[[Any], int]:
    return lambda cpu: int(cpu.registers.fpr[number]) & 0xFFFF_FFFF


def _jump(cpu: Any, value: int) -> None:
    cpu.registers.jump(value)


def _rows() -> Iterator[Register]:
    for number in range(32):
        read, write = general(number)
        yield Register(f"r{number}", 32, _CPU, read, write if number else None)
    yield Register("lo", 32, _CPU, of_either("lo"), None, "", 33)
    yield Register("hi", 32, _CPU, of_either("hi"), None, "", 34)
    yield Register("pc", 32, _CPU, of_either("pc"), _jump, "code_ptr", 37)
    yield Register("status", 32, _CP0, _plain("status"), None, "", 32)
    yield Register("badvaddr", 32, _CP0, _plain("bad_v_addr"), None, "", 35)
    yield Register("cause", 32, _CP0, _plain("cause"), None, "", 36)
    for number in range(32):
        yield Register(f"f{number}", 32, _FPU, _float(number), None, "ieee_single", 38 + number)
    yield Register("fcsr", 32, _FPU, of_either("fcsr"), None, "int", 70)
    yield Register("fir", 32, _FPU, lambda _cpu: 0, None, "int", 71)
    for name in ("epc", "entry_hi", "index", "ebase", "context"):
        read = _exception_base if name == "ebase" else _plain(name)
        yield Register(f"cp0_{name}", 32, _OWN, read, None, "", 72 if name == "epc" else -1)


MIPS32: Final = Target("mips:isa32r2", tuple(_rows()), by_frame, "pc", mappings_tlb, word=4)
