"""Withholding the generic timer of Unicorn's ARM: every access to it becomes an undefined instruction.

Room: `emulator/engine/unicorn`. Unicorn's counter is the host's time, so that no run would be equal to another; its
timers never interrupt. QEMU asks an access function of each system register for permission; that of the timer's
registers is replaced by one that refuses. Its place is confirmed by experiment, like the rest of the state.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from typing import Any, Final

from emulator.engine.unicorn.state import _read_memory
from emulator.errors import EngineMissing

ARM_TABLE: Final = 0xB420
AARCH64_TABLE: Final = 0xD510
"""Offset in the CPU object of the pointer to the table of system registers."""
_NODES: Final = 24
"""Offset in a hash table of the pointer to its nodes; each is key, value and hash."""
_NODE_WORDS: Final = 3
_ACCESS: Final = 72
"""Offset in a register's description of its access function."""
_REFUSE: Final = bytes.fromhex("b802000000c3")
"""mov eax, 2 (CP_ACCESS_TRAP_UNCATEGORIZED); ret."""
_LONGEST: Final = 64
_LEAST: Final = 16
"""Registers of the timer that there are at least, banked ones counted twice."""


def _word(descriptor: int, address: int) -> int:
    return int.from_bytes(_read_memory(descriptor, address, 8).ljust(8, b"\0"), "little")


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
        descriptor = os.open("/proc/self/mem", os.O_RDONLY)
        try:
            found = _registers(descriptor, cpu + table)
        finally:
            os.close(descriptor)
        if len(found) < _LEAST:
            raise EngineMissing(
                "the unicorn engine keeps its system registers where retrap does not find them: install unicorn==2.1.4"
            )
        for register in found:
            ctypes.c_uint64.from_address(register + _ACCESS).value = refuse


def _registers(descriptor: int, place: int) -> list[int]:
    """Host addresses of the descriptions of the timer's registers, by the table whose address is at `place`; nothing
    where that is none."""
    table = _word(descriptor, place)
    size = _word(descriptor, table) & 0xFFFF_FFFF
    nodes = _word(descriptor, table + _NODES)
    if not 0 < size <= 1 << 16:
        return []
    contents = _read_memory(descriptor, nodes, 8 * _NODE_WORDS * size)
    if len(contents) < 8 * _NODE_WORDS * size:
        return []
    values = memoryview(contents).cast("Q")[1::_NODE_WORDS].tolist()
    found = []
    for value in sorted(value for value in values if 0x10000 < value < 1 << 47):
        name = _read_memory(descriptor, _word(descriptor, value), _LONGEST).split(b"\0")[0]
        if _is_timer(name.decode("latin-1")):
            found.append(value)
    return found
