"""The hypervisor's part of a guest's address space: what every root has in slots 256 to 271.

Room: `paravirt/xen`. Slot 256 is the table from machine to pseudo-physical frames, read-only to the guest's kernel;
slot 257 the descriptor tables, which only the processor itself can read. The tables that map them are the hypervisor's
own, apart from machine memory, where no entry of a guest can lead.
"""

from __future__ import annotations

import mmap
from typing import Final

from emulator.engine.x86 import X86Engine
from paravirt import layout
from paravirt.xen.host import LARGE_PAGE, Host
from paravirt.xen.public import FIRST_RESERVED_PAGE, FLAT_CODE32, FLAT_CODE64, FLAT_DATA

TABLES: Final = layout.TABLES_BASE
"""Engine-physical address of the tables below."""
MACHINE_TO_PHYSICAL_AT: Final = TABLES + (1 << 30)
"""Engine-physical address of the host's table."""
_THIRD, _SECOND, _DESCRIPTORS_THIRD, _DESCRIPTORS_SECOND, _DESCRIPTORS_FIRST, _OWN, _ZERO, _PAGES = range(8)
_PRESENT, _USER, _LARGE, _NO_EXECUTE, _ACCESSED = 1, 4, 0x80, 1 << 63, 0x20
_LEAF: Final = _PRESENT | _ACCESSED | _NO_EXECUTE
GUEST_PAGES: Final = FIRST_RESERVED_PAGE
LOCAL_PAGES: Final = 16
DESCRIPTOR_LIMIT: Final = (FIRST_RESERVED_PAGE + 1) * 4096 - 1
CODE64, CODE32, DATA = 0x00AF_FB00_0000_FFFF, 0x00CF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF
"""Flat segments of privilege level 3."""


class HypervisorSpace:
    """The hypervisor's entries of every root of one guest, and the pages behind them."""

    def __init__(self, host: Host, engine: X86Engine) -> None:
        self.memory = memoryview(mmap.mmap(-1, _PAGES * 4096))
        self._words = self.memory.cast("Q")
        own = _OWN * 512
        for selector, descriptor in ((FLAT_CODE64, CODE64), (FLAT_CODE32, CODE32), (FLAT_DATA, DATA)):
            self._words[own + (selector >> 3 & 511)] = descriptor
        words = self._words
        words[_THIRD * 512] = self._at(_SECOND) | _PRESENT | _ACCESSED | _USER
        for number in range(len(host.machine_to_physical_bytes) // LARGE_PAGE):
            words[_SECOND * 512 + number] = MACHINE_TO_PHYSICAL_AT + number * LARGE_PAGE | _LEAF | _LARGE | _USER
        words[_DESCRIPTORS_THIRD * 512] = self._at(_DESCRIPTORS_SECOND) | _PRESENT | _ACCESSED
        words[_DESCRIPTORS_SECOND * 512] = self._at(_DESCRIPTORS_FIRST) | _PRESENT | _ACCESSED
        for page in range(GUEST_PAGES):
            self.map_descriptors(page, None)
        words[_DESCRIPTORS_FIRST * 512 + FIRST_RESERVED_PAGE] = self._at(_OWN) | _LEAF
        self.roots = {
            256: self._at(_THIRD) | _PRESENT | _ACCESSED | _USER,
            257: self._at(_DESCRIPTORS_THIRD) | _PRESENT | _ACCESSED,
        }
        """What every root holds, by index."""
        engine.map_memory(TABLES, self.memory)
        engine.map_memory(MACHINE_TO_PHYSICAL_AT, host.machine_to_physical_bytes)

    @staticmethod
    def _at(page: int) -> int:
        return TABLES + page * 4096

    def map_descriptors(self, page: int, frame: int | None) -> None:
        """Page `page` of the descriptor table is the guest's machine frame, or empty. A flush is the caller's."""
        at = self._at(_ZERO) if frame is None else frame << 12
        self._words[_DESCRIPTORS_FIRST * 512 + page] = at | _LEAF

    def map_local(self, page: int, frame: int | None) -> None:
        """The same of the local descriptor table, whose pages may be absent."""
        self._words[_DESCRIPTORS_FIRST * 512 + 16 + page] = 0 if frame is None else frame << 12 | _LEAF
