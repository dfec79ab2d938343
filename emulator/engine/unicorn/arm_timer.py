"""Withholding the generic timer of Unicorn's ARM: every access to it becomes an undefined instruction.

Room: `emulator/engine/unicorn`. Unicorn's counter is the host's time, so that no run would be equal to another; its
timers never interrupt. QEMU asks an access function of each system register for permission; that of the timer's
registers is replaced by one that refuses. Its place is confirmed by experiment, like the rest of the state.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
from typing import Any, Final

from emulator.engine.unicorn.arm_registers import ACCESS, ARM_TABLE, descriptions
from emulator.errors import EngineMissing

_REFUSE: Final = bytes.fromhex("b802000000c3")
"""mov eax, 2 (CP_ACCESS_TRAP_UNCATEGORIZED); ret."""
_LEAST: Final = 16
"""Registers of the timer that there are at least, banked ones counted twice."""


def _is_timer(name: str) -> bool:
    level = name.partition("_EL")[2]
    return name.startswith(("CNTP", "CNTV", "CNTFRQ")) and not name.startswith("CNTVOFF") and level in ("", "0")


class WithheldTimer:
    """The native code of the refusal; kept as long as the engine."""

    def __init__(self, cpu: int, table: int = ARM_TABLE) -> None:
        """`cpu` is the host address of QEMU's CPU object, `table` an offset in it. Raises `EngineMissing` where things
        are elsewhere."""
        if platform.machine() != "x86_64":
            raise EngineMissing(
                f"the unicorn engine needs native callbacks, written for x86_64 only, not {platform.machine()}"
            )
        self._page: Any = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page.write(_REFUSE)
        refuse = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        found = [one.address for one in descriptions(cpu, table) if _is_timer(one.name)]
        if len(found) < _LEAST:
            raise EngineMissing(
                "the unicorn engine keeps its system registers where retrap does not find them: install unicorn==2.1.4"
            )
        for register in found:
            ctypes.c_uint64.from_address(register + ACCESS).value = refuse
